"""Artifacts into modules and back: what training stores is what serving loads.

The only place that knows the names of tensors inside `model.safetensors` and how golden outputs
are made and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models_cache.artifacts import Artifact, Kind, expect_array, read_golden, read_model
from models_cache.backbones import Classifier, build_backbone
from models_cache.blobs import BlobStore
from models_cache.errors import ArtifactGoldenMismatch, ArtifactMalformed
from models_cache.features import is_out_of_memory, normalised
from models_cache.preprocessing import Preprocessing

GOLDEN_IMAGES = 2
# Engines, batch sizes and thread counts change outputs by about 1e-5; other weights, another
# mean or channel order by far more than this. Relative to the largest output where that exceeds
# 1. The images are stored as the network sees them: decoding and resizing are not checked.
GOLDEN_TOLERANCE = 1e-3

_HEAD = "head."

#: Pixels uint8 `[G, crop, crop, 3]` -> features `[G, D]` and logits `[G, C]`, float32 on the CPU.
OutputsOf = Callable[[NDArray[np.uint8]], tuple[Tensor, Tensor]]


def load_classifier(artifact: Artifact, blobs: BlobStore, weights_path: Path | None) -> Classifier:
    """Build the classifier of an artifact, in eval mode on the CPU.

    Args:
        artifact: What to load.
        blobs: Where its files are.
        weights_path: The verified pretrained file, for kind `head`; otherwise not read.

    Raises:
        ArtifactMalformed: Its tensors do not fit its architecture.
        WeightsError: The pretrained file cannot be used.
    """
    facts = artifact.facts
    tensors = _tensors(read_model(blobs, artifact))
    if facts.kind == "head":
        if weights_path is None or facts.weights is None:
            raise ArtifactMalformed("a head needs the weights file of its backbone")
        has_head = bool(facts.weights.get("has_head", True))
        backbone = build_backbone(facts.architecture, weights_path=weights_path, has_head=has_head)
    else:
        backbone = build_backbone(facts.architecture, input_px=facts.preprocessing.crop_px)
    classifier = Classifier(backbone, facts.feature_width, len(facts.classes))
    _load_tensors(classifier.head if facts.kind == "head" else classifier, tensors, facts.kind)
    return classifier.eval()


def load_head(
    artifact: Artifact, blobs: BlobStore
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight `[C, D]` and bias `[C]` of the head of an artifact of either kind.

    Raises:
        ArtifactMalformed: They are missing, or of another shape or type.
    """
    arrays = read_model(blobs, artifact)
    classes = len(artifact.facts.classes)
    expect_array("head.weight", arrays, (classes, artifact.facts.feature_width), np.float32)
    expect_array("head.bias", arrays, (classes,), np.float32)
    return arrays["head.weight"], arrays["head.bias"]


def tensors_to_publish(classifier: Classifier, kind: Kind) -> dict[str, NDArray[Any]]:
    """Return the arrays of `model.safetensors` for a trained classifier."""
    return {
        name: value.detach().cpu().contiguous().numpy()
        for name, value in classifier.state_dict().items()
        if kind == "whole" or name.startswith(_HEAD)
    }


def golden_outputs(classifier: Classifier, preprocessing: Preprocessing) -> dict[str, NDArray[Any]]:
    """Return what `golden.safetensors` holds: drawn images and what the classifier makes of them.

    The images are drawn from a fixed seed: no photograph of a user leaves with an artifact.

    Args:
        classifier: In eval mode, on any device.
        preprocessing: Its size, mean and std.
    """
    images = golden_images(preprocessing.crop_px)
    features, logits = outputs_of_classifier(classifier, preprocessing)(images)
    return {"images": images, "features": features.numpy(), "logits": logits.numpy()}


def golden_images(crop_px: int) -> NDArray[np.uint8]:
    """Draw the golden images, uint8 `[G, crop, crop, 3]`: coloured waves under fine noise."""
    generator = np.random.Generator(np.random.PCG64(0))
    along = np.arange(crop_px)[:, None] / crop_px
    y, x = along[:, None], along[None]  # [crop, 1, 1], [1, crop, 1]
    images = []
    for _ in range(GOLDEN_IMAGES):
        frequency, phase = generator.uniform(1, 9, (2, 3)), generator.uniform(0, 6.3, (2, 3))
        waves = np.sin(6.3 * frequency[0] * y + phase[0]) + np.sin(
            6.3 * frequency[1] * x + phase[1]
        )
        noise = generator.normal(0, 0.1, (crop_px, crop_px, 3))
        images.append(np.clip(127.5 + 60 * waves + 60 * noise, 0, 255).astype(np.uint8))
    return np.stack(images)


def check_golden(outputs_of: OutputsOf, artifact: Artifact, blobs: BlobStore) -> None:
    """Check that what was loaded gives the outputs stored with its artifact.

    Features are compared too: a head of zeros has the right logits on any backbone.

    Args:
        outputs_of: What runs it; see `outputs_of_classifier`.
        artifact: What it was loaded from.
        blobs: Where the artifact's files are.

    Raises:
        ArtifactGoldenMismatch: Features or logits differ by more than `GOLDEN_TOLERANCE`.
        ArtifactMalformed: The stored outputs are not those of such a classifier.
    """
    golden = read_golden(blobs, artifact)
    try:
        outputs = outputs_of(golden["images"])
        compared = [
            _difference(found, torch.from_numpy(golden[name]))
            for name, found in zip(("features", "logits"), outputs, strict=True)
        ]
    except (KeyError, RuntimeError, TypeError, IndexError) as error:
        if is_out_of_memory(error):  # says nothing about the artifact
            raise
        raise ArtifactMalformed(f"golden outputs: {error}") from error
    for difference, tolerance in compared:
        if not difference <= tolerance:  # also true for NaN
            raise ArtifactGoldenMismatch(difference, tolerance)


def gives_golden_features(
    features_of: Callable[[NDArray[np.uint8]], Tensor], artifact: Artifact, blobs: BlobStore
) -> bool:
    """Tell whether an engine gives the features stored with an artifact.

    Args:
        features_of: Pixels uint8 `[B, H, W, 3]` -> features float32 `[B, D]`.
        artifact: Of the same backbone.
        blobs: Where the artifact's files are.
    """
    golden = read_golden(blobs, artifact)
    try:
        stored = torch.from_numpy(golden["features"])
        difference, tolerance = _difference(features_of(golden["images"]), stored)
    except (KeyError, RuntimeError, TypeError, IndexError):  # told by whoever checks the artifact
        return False
    return difference <= tolerance


def _difference(found: Tensor, stored: Tensor) -> tuple[float, float]:
    """Return the largest difference of two tensors, and the largest that is tolerated."""
    tolerance = GOLDEN_TOLERANCE * max(1.0, float(stored.abs().max()))
    return float((found - stored).abs().max()), tolerance


def outputs_of_classifier(classifier: Classifier, preprocessing: Preprocessing) -> OutputsOf:
    """Return what runs a whole classifier, in eval mode, on any device, for `check_golden`."""

    @torch.inference_mode()
    def outputs_of(images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(images).to(classifier.head.weight.device)
        features: Tensor = classifier.backbone(normalised(pixels, preprocessing))
        logits: Tensor = classifier.head(features)
        return features.float().cpu().clone(), logits.float().cpu().clone()

    return outputs_of


def _tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _load_tensors(module: nn.Module, tensors: dict[str, Tensor], kind: Kind) -> None:
    if kind == "head":
        tensors = {name.removeprefix(_HEAD): value for name, value in tensors.items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactMalformed(str(error)[:500]) from error
