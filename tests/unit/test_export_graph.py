"""Exported graphs against the code that serves, on drawn images of many sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models_cache.artifacts import MULTILABEL, Artifact, ArtifactFacts, write_artifact
from models_cache.backbones import Classifier, build_backbone, feature_width
from models_cache.blobs import BlobStore
from models_cache.calibration import Calibration
from models_cache.classifiers import golden_outputs, tensors_to_publish
from models_cache.decode import center_crop, resize_shorter_side
from models_cache.export_check import (
    CheckImage,
    Probabilities,
    check_images,
    compare_with_served,
    served_probabilities,
)
from models_cache.export_errors import ExportMismatch, ExportTooLarge, ExportUnsupported
from models_cache.export_formats import FORMATS, load_graph, write_graph
from models_cache.export_graph import ImageGraph, ResizeAndCrop
from models_cache.preprocessing import Interpolation, Preprocessing

ARCHITECTURE = "squeezenet1_1"
SMALL = Preprocessing(resize_px=72, crop_px=64)
CLASSES = ("ant", "bee", "Wespe 🐝")


pytestmark = pytest.mark.slow


def nothing(_done: int, _total: int) -> None:
    pass


def classifier() -> Classifier:
    torch.manual_seed(0)
    model = Classifier(build_backbone(ARCHITECTURE), feature_width(ARCHITECTURE), len(CLASSES))
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


def artifact_of(model: Classifier, folder: Path, **different: Any) -> Artifact:  # noqa: ANN401
    width = model.head.in_features
    facts = ArtifactFacts("classification", ARCHITECTURE, "whole", None, SMALL, CLASSES, width)
    facts = dataclasses.replace(facts, **different)
    golden = golden_outputs(model, facts.preprocessing)
    return write_artifact(BlobStore(folder), facts, tensors_to_publish(model, "whole"), golden)


def served(model: Classifier, artifact: Artifact) -> tuple[list[CheckImage], list[Probabilities]]:
    images = check_images(artifact.facts.preprocessing)
    return images, served_probabilities(model, artifact, images, nothing)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("resize_px", "crop_px"), [(72, 64), (65, 64), (64, 64), (48, 63)])
def test_resize_and_crop_are_those_of_serving(
    interpolation: Interpolation, resize_px: int, crop_px: int
) -> None:
    preprocessing = Preprocessing(resize_px, crop_px, interpolation)
    for image in check_images(preprocessing):
        resized = resize_shorter_side(image.pixels, resize_px, interpolation)
        expected = center_crop(resized, crop_px).astype(np.float32)
        (found,) = ResizeAndCrop(preprocessing)(torch.from_numpy(image.pixels[None]))
        difference = np.abs(found.permute(1, 2, 0).numpy() - expected)
        if interpolation == "nearest":  # a row that lies just between two is one of them
            assert (difference > 0).mean() < 0.3, image.name
            continue
        assert difference.max() <= 2, image.name
        assert (difference > 0).mean() < 0.1, image.name
        if image.pixels.shape[0] == resize_px:
            assert difference.max() == 0


@pytest.mark.parametrize(
    "different",
    [
        {"calibration": Calibration(2.5, "val", 100, 0.95, ())},
        {"task": MULTILABEL, "thresholds": (0.5, 0.4, 0.3)},
        {"preprocessing": Preprocessing(48, 63, "bicubic")},
    ],
    ids=["temperature", "several labels", "black borders"],
)
@pytest.mark.parametrize("name", FORMATS)
def test_graph_gives_the_served_probabilities(
    name: str, different: dict[str, Any], tmp_path: Path
) -> None:
    model = classifier()
    artifact = artifact_of(model, tmp_path / "blobs", **different)
    images, expected = served(model, artifact)
    path = tmp_path / FORMATS[name].file
    write_graph(ImageGraph(model, artifact.facts), FORMATS[name], ARCHITECTURE, path)
    run = load_graph(path, FORMATS[name], ARCHITECTURE, threads=1)
    agreement = compare_with_served(run, name, images, expected, nothing)
    assert agreement.images == len(images)
    assert agreement.resized <= 1e-5
    assert agreement.any_size <= 1e-2
    assert np.ptp([row[0] for row in expected]) > 0.05  # one answer for all would prove nothing


def test_graph_that_gives_other_probabilities_is_refused(tmp_path: Path) -> None:
    model = classifier()
    artifact = artifact_of(model, tmp_path)
    images, expected = served(model, artifact)

    def wrong(batch: Any) -> Any:  # noqa: ANN401
        del batch
        return expected[0] + np.float32(0.5)

    with pytest.raises(ExportMismatch, match=r"differ .* by 0\.5 on a drawn image of 72x72"):
        compare_with_served(wrong, "onnx", images, expected, nothing)


class _Bessel(nn.Module):
    """A network with an operator that ONNX does not have."""

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = torch.special.bessel_j0(images)
        return features.mean(dim=(2, 3))


class _Undecided(nn.Module):
    """A network whose path depends on the values of an image."""

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))
        return features if features.sum() > 0 else -features


@pytest.mark.parametrize(
    ("name", "network", "reason"),
    [("onnx", _Bessel(), "special_bessel_j0"), ("torch_export", _Undecided(), "data-dependent")],
)
def test_operator_that_cannot_be_exported_is_named(
    name: str, network: nn.Module, reason: str, tmp_path: Path
) -> None:
    facts = ArtifactFacts("classification", "made_up", "whole", None, SMALL, ("a", "b"), 3)
    graph = ImageGraph(Classifier(network, 3, 2), facts)
    with pytest.raises(ExportUnsupported, match=reason) as refused:
        write_graph(graph, FORMATS[name], "made_up", tmp_path / "graph")
    assert refused.value.other == FORMATS[name].other != name


def test_network_too_large_for_one_file_is_told_before_it_is_written(tmp_path: Path) -> None:
    model = classifier()
    artifact = artifact_of(model, tmp_path / "blobs")
    small = dataclasses.replace(FORMATS["onnx"], most_bytes=1000)
    with pytest.raises(ExportTooLarge, match="use format torch_export"):
        write_graph(ImageGraph(model, artifact.facts), small, ARCHITECTURE, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()
