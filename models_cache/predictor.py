"""Artifacts into predictions: what is loaded, and the one forward pass of a batch.

Artifacts that share architecture, weights and preprocessing share one loaded backbone, and their
images share one forward pass; each artifact's head is applied to its own rows afterwards. Heads
and backbones live in caches of their own: a thousand small heads must not push out a backbone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models_cache.artifacts import (
    FAMILIARITY_FILE,
    GOLDEN_FILE,
    MULTILABEL,
    Artifact,
    parse_artifact,
    read_artifact,
    read_familiarity,
)
from models_cache.backbone_weights import verified_weights
from models_cache.backbones import Classifier
from models_cache.blobs import BlobStore
from models_cache.classifiers import (
    check_golden,
    gives_golden_features,
    golden_images,
    load_classifier,
    load_head,
)
from models_cache.decode import ImageLimits, center_crop, decode_rgb, resize_shorter_side
from models_cache.engine_store import EngineKey, EngineStore
from models_cache.engines import Engine, choose_engine
from models_cache.errors import (
    DeviceUnavailable,
    GraftError,
    ModelUnhealthy,
)
from models_cache.features import freeze, is_out_of_memory
from models_cache.loaded import LoadedCache, Pinned
from models_cache.novelty import Familiarity
from models_cache.preprocessing import Preprocessing

Pixels = NDArray[np.uint8]

_HEADS_FRACTION = 1 / 8  # of the cache's bytes


@dataclass(frozen=True)
class BackboneKey:
    """What must be equal for two artifacts to share one backbone.

    Args:
        architecture: Name in the catalogue.
        sha256: Of the file that holds the backbone's tensors.
        preprocessing_digest: Of the preprocessing, since a batch is normalised as one.
        artifact: One of those that share it, to load it by; no part of the key.
    """

    architecture: str
    sha256: str
    preprocessing_digest: str
    artifact: Artifact = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class LoadedHead:
    """An artifact's linear layer, `[B, D]` -> `[B, C]`.

    It stays on the CPU: a batch comes back from the device once, not once per head.
    `familiarity` is None where the artifact does not say what known images look like.
    """

    artifact: Artifact
    backbone_key: BackboneKey
    linear: nn.Linear
    familiarity: Familiarity | None

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become scores."""
        calibration = self.artifact.facts.calibration
        return 1.0 if calibration is None else calibration.temperature


@dataclass(frozen=True, eq=False)
class Model:
    """A head with its backbone, both in memory for as long as the model is pinned."""

    head: LoadedHead
    backbone: Engine

    @property
    def backbone_key(self) -> BackboneKey:
        """The key that images of this model are batched by."""
        return self.head.backbone_key

    @property
    def classes(self) -> Sequence[str]:
        """Names of the C classes, in the order of the scores."""
        return self.head.artifact.facts.classes

    @property
    def thresholds(self) -> Sequence[float] | None:
        """Score from which on each class is a label; None if the likeliest is the answer."""
        return self.head.artifact.facts.thresholds

    @property
    def preprocessing(self) -> Preprocessing:
        """What makes an image this model's input."""
        return self.head.artifact.facts.preprocessing


@dataclass(frozen=True, eq=False)
class QueuedImage:
    """One image on its way to a forward pass: pixels uint8 `[crop, crop, 3]`.

    It holds its model itself, so that no eviction takes it away.
    """

    model: Model
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class ImageOutput:
    """What a model says of one image.

    Args:
        scores: Calibrated, float32 `[C]` on the CPU; with sum 1 unless there may be several labels.
        ood_score: Fraction of the known images that are less unusual; None if the model cannot
            tell.
        out_of_distribution: Whether that is too many for an image like the known ones.
    """

    scores: Tensor
    ood_score: float | None
    out_of_distribution: bool


class _Preread(BlobStore):
    """One blob, read when this is made: a disk must not be waited for under the device lock."""

    def __init__(self, blobs: BlobStore, sha256: str) -> None:
        self._data = {sha256: blobs.read(sha256)}

    def read(self, sha256: str) -> bytes:
        """Return the blob's bytes."""
        return self._data[sha256]


class Predictor:
    """Loads artifacts from a data folder and runs them on one device. Thread-safe.

    Args:
        data_folder: Holds `blobs/`, `weights/` and `cache/engines/`.
        device: Where backbones and heads live.
        cache_bytes: Bound on what is loaded and not in use.
        limits: What images may be.
    """

    def __init__(
        self, data_folder: Path, device: torch.device, cache_bytes: int, limits: ImageLimits
    ) -> None:
        self._blobs = BlobStore(data_folder / "blobs")
        self._weights_folder = data_folder / "weights"
        self._engines = EngineStore(data_folder / "cache" / "engines")
        self._device = device
        self._limits = limits
        heads_bytes = int(cache_bytes * _HEADS_FRACTION)
        self._heads = LoadedCache(self._load_head, _head_bytes, heads_bytes)
        self._backbones = LoadedCache(
            self._load_backbone, lambda engine: engine.size_bytes, cache_bytes - heads_bytes
        )
        # Around every call of a module, and nothing slower: choosing an engine traces the network,
        # and torch's tracer replaces `nn.Module.__call__` for the whole process meanwhile
        self._device_lock = threading.Lock()
        self._mixed_batches = 0
        self._batches = 0
        self._images = 0

    def pin(self, digest: str) -> Pinned[Model]:
        """Return an artifact's model, loaded and checked; blocks while it loads.

        Raises:
            BlobMissing: There is no such artifact, or one of its files is gone.
            ArtifactError: Its files are damaged, or it does not give its stored outputs.
            WeightsError: Its backbone's weights are missing or not what they were.
            DeviceUnavailable: The device's memory is full.
        """
        with ExitStack() as pins, self._needing_memory("while loading"):
            head = self._heads.pin(digest)
            pins.callback(head.release)
            backbone = self._backbones.pin(head.value.backbone_key)
            pins.pop_all()
        return _pinned_model(head, backbone)

    def pin_if_loaded(self, digest: str) -> Pinned[Model] | None:
        """Return an artifact's model if all of it is loaded; never blocks."""
        head = self._heads.pin_if_loaded(digest)
        if head is None:
            return None
        backbone = self._backbones.pin_if_loaded(head.value.backbone_key)
        if backbone is None:
            head.release()
            return None
        return _pinned_model(head, backbone)

    def backbone_key_of(self, digest: str) -> BackboneKey:
        """Return the key of an artifact's backbone; reads and checks the description alone.

        Raises:
            BlobMissing: There is no such artifact.
            ArtifactError: Its description is damaged.
        """
        artifact = parse_artifact(self._blobs.read(digest))
        return BackboneKey(*artifact.backbone_key, artifact=artifact)

    def pin_backbone(self, key: BackboneKey) -> Pinned[Engine]:
        """Return a backbone, loaded; blocks while it loads.

        Raises:
            GraftError: As `pin`.
        """
        with self._needing_memory("while loading"):
            return self._backbones.pin(key)

    def pin_backbone_if_loaded(self, key: BackboneKey) -> Pinned[Engine] | None:
        """Return a backbone if it is loaded; never blocks."""
        return self._backbones.pin_if_loaded(key)

    def preprocess(self, model: Model, data: bytes | memoryview) -> Pixels:
        """Turn an encoded image into uint8 `[crop, crop, 3]`; as training does, by construction.

        Raises:
            ImageError: It cannot be decoded, or is larger than the limits.
        """
        facts = model.preprocessing
        upright = decode_rgb(bytes(data), self._limits)
        resized = resize_shorter_side(upright, facts.resize_px, facts.interpolation)
        return center_crop(resized, facts.crop_px)

    def forward(
        self, key: BackboneKey, images: Sequence[QueuedImage]
    ) -> list[ImageOutput | GraftError]:
        """Run one batch of images of models that share a backbone.

        Returns:
            Per image what its model says, or why it says nothing.

        Raises:
            DeviceUnavailable: The device's memory does not suffice for so many images.
        """
        del key  # all of these images have it
        memory = self._needing_memory(f"with a batch of {len(images)}")
        with memory, self._device_lock, torch.inference_mode():
            outcomes = _outputs(images)
        self._batches += 1
        self._images += len(images)
        self._mixed_batches += len({id(image.model.head) for image in images}) > 1
        return outcomes

    def status(self) -> dict[str, Any]:
        """Return what is loaded and what has been run, JSON-ready."""
        return {
            "device": str(self._device),
            "loaded": [
                {"architecture": key.architecture, "sha256": key.sha256}
                for key in self._backbones.keys()  # noqa: SIM118 - a method, not a mapping
            ],
            "loaded_heads": len(self._heads.keys()),
            "loaded_bytes": self._backbones.loaded_bytes + self._heads.loaded_bytes,
            "batches": self._batches,
            "mixed_batches": self._mixed_batches,
            "images": self._images,
        }

    def _load_head(self, digest: str) -> LoadedHead:
        artifact = read_artifact(self._blobs, digest)
        key, facts = BackboneKey(*artifact.backbone_key, artifact=artifact), artifact.facts
        head = load_head(artifact, self._blobs).to(self._device)
        golden = _Preread(self._blobs, artifact.files[GOLDEN_FILE].sha256)
        with self._backbones.pin(key) as backbone:
            classifier = Classifier(backbone.forward, facts.feature_width, len(facts.classes))
            classifier.head = head
            classifier.eval()
            with self._device_lock:
                check_golden(classifier, artifact, golden)
        familiarity = None
        if FAMILIARITY_FILE in artifact.files:
            familiarity = Familiarity.of(read_familiarity(self._blobs, artifact))
        return LoadedHead(artifact, key, head.cpu(), familiarity)

    def _load_backbone(self, key: BackboneKey) -> Engine:
        return self._built_engine(key) or self._torch_engine(key)

    def _built_engine(self, key: BackboneKey) -> Engine | None:
        """Return the engine that was built of a backbone, if it gives what the artifact says."""
        artifact = key.artifact
        if self._device.type != "cpu" or artifact.facts.kind != "head":
            return None
        name = EngineKey(key.architecture, key.sha256, key.preprocessing_digest)
        engine = self._engines.load(name)
        if engine is None:
            return None
        golden = _Preread(self._blobs, artifact.files[GOLDEN_FILE].sha256)
        with self._device_lock:
            fits = gives_golden_features(
                lambda pixels: engine.features(pixels, artifact.facts.preprocessing),
                artifact,
                golden,
            )
        return engine if fits else None

    def _torch_engine(self, key: BackboneKey) -> Engine:
        artifact = key.artifact
        weights_path = None
        if artifact.facts.kind == "head":
            assert artifact.facts.weights is not None  # checked when the artifact was read
            weights_path = verified_weights(self._weights_folder, artifact.facts.weights)
        classifier = load_classifier(artifact, self._blobs, weights_path)
        preprocessing = artifact.facts.preprocessing
        probe = torch.from_numpy(golden_images(preprocessing.crop_px)).to(self._device)
        backbone = freeze(classifier.backbone, self._device)
        return choose_engine(backbone, probe, preprocessing, exclusive=lambda: self._device_lock)

    @contextmanager
    def _needing_memory(self, when: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceUnavailable(str(self._device), f"out of memory {when}") from error


def labels_of(scores: Tensor, model: Model) -> dict[str, list[str]]:
    """Return `{"labels": [...]}`, the classes whose score reaches theirs; empty for one label.

    Args:
        scores: float32 `[C]`.
        model: What they are of.
    """
    if model.thresholds is None:
        return {}
    scored = zip(model.classes, scores.tolist(), model.thresholds, strict=True)
    return {"labels": [name for name, score, threshold in scored if score >= threshold]}


def ranked(scores: Tensor, classes: Sequence[str], top_k: int | None) -> list[dict[str, Any]]:
    """Return `[{"label", "score"}]`, highest first; equal scores in the order of the classes.

    Args:
        scores: float32 `[C]`.
        classes: C names.
        top_k: How many to return; None for all.
    """
    count = min(top_k or len(classes), len(classes))
    values, indices = torch.sort(scores, descending=True, stable=True)
    return [
        {"label": classes[index], "score": value}
        for value, index in zip(values[:count].tolist(), indices[:count].tolist(), strict=True)
    ]


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:0` means here.

    Raises:
        DeviceUnavailable: It is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # makes the CUDA context, so that it fails now or never
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailable(name[:40], str(error).splitlines()[0]) from error
    return device


def _outputs(images: Sequence[QueuedImage]) -> list[ImageOutput | GraftError]:
    model = images[0].model
    pixels = torch.from_numpy(np.stack([image.pixels for image in images]))  # [B, H, W, 3]
    features = model.backbone.features(pixels, model.preprocessing)  # [B, D]
    outcomes: list[ImageOutput | GraftError | None] = [None] * len(images)
    for head, rows in _rows_by_head(images):
        for row, outcome in zip(rows, _outputs_of_head(head, features[rows]), strict=True):
            outcomes[row] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _outputs_of_head(head: LoadedHead, features: Tensor) -> Iterator[ImageOutput | GraftError]:
    """Yield what a head says of its images by their features `[B, D]`."""
    logits = head.linear(features)  # [B, C]
    logits_of_scores = logits / head.temperature
    independent = head.artifact.facts.task == MULTILABEL
    scores = logits_of_scores.sigmoid() if independent else logits_of_scores.softmax(dim=1)
    finite = logits.isfinite().all(dim=1).tolist()
    ood_scores: list[float | None] = [None] * len(features)
    strange = [False] * len(features)
    if head.familiarity is not None:
        ood_scores, strange = (found.tolist() for found in head.familiarity.judge(features))
    for row, is_finite in enumerate(finite):
        if is_finite:
            yield ImageOutput(scores[row], ood_scores[row], strange[row])
        else:
            yield ModelUnhealthy(head.artifact.digest)


def _head_bytes(head: LoadedHead) -> int:
    familiar_bytes = 0 if head.familiarity is None else head.familiarity.nbytes
    return head.linear.weight.nbytes + head.linear.bias.nbytes + familiar_bytes


def _pinned_model(head: Pinned[LoadedHead], backbone: Pinned[Engine]) -> Pinned[Model]:
    def release() -> None:
        head.release()
        backbone.release()

    return Pinned(Model(head.value, backbone.value), release)


def _rows_by_head(images: Sequence[QueuedImage]) -> list[tuple[LoadedHead, list[int]]]:
    groups: dict[str, tuple[LoadedHead, list[int]]] = {}
    for row, image in enumerate(images):
        head = image.model.head
        groups.setdefault(head.artifact.digest, (head, []))[1].append(row)
    return list(groups.values())
