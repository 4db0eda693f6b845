"""Artifacts into predictions: what is loaded, and the one forward pass of a batch.

Artifacts that share architecture, weights and preprocessing share one loaded backbone, and their
images share one forward pass; each artifact's head is applied to its own rows afterwards. Those
tuned in their last stages share the stages before. Heads and backbones live in caches of their
own: a thousand small heads must not push out a backbone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models_cache.answers import ImageOutput, QueuedImage, answers_of
from models_cache.artifacts import (
    FAMILIARITY_FILE,
    Artifact,
    describe_artifact,
    read_familiarity,
)
from models_cache.backbone_weights import verified_weights
from models_cache.blobs import BlobStore
from models_cache.classifiers import (
    check_golden,
    gives_golden_features,
    golden_images,
    load_classifier,
    load_head,
)
from models_cache.cut_network import CutNetwork, cut_at_boundary
from models_cache.decode import ImageLimits, center_crop, decode_rgb, resize_shorter_side
from models_cache.engine_store import EngineKey, EngineStore, engine_spec
from models_cache.engines import Engine, choose_engine_for
from models_cache.errors import DeviceUnavailable, GraftError
from models_cache.features import freeze, is_out_of_memory, normalised
from models_cache.loaded import LoadedCache, Occupancy, Pinned
from models_cache.novelty import Familiarity, packed
from models_cache.served_models import (
    BackboneKey,
    LoadedBackbone,
    LoadedHead,
    Model,
    Pixels,
    Trunk,
)
from models_cache.tensor_input import pixels_of_tensor
from models_cache.trunks import Trunks, tuned_tensors

_HEADS_FRACTION = 1 / 8  # of the cache's bytes
# Measured on two cores: 32 images no longer fit their caches, and all of them wait for the last
_CPU_BATCH_IMAGES = 16
_GPU_BATCH_IMAGES = 32


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
        self._heads = LoadedCache(self._load_head, lambda head: head.nbytes, heads_bytes)
        self._backbones = LoadedCache(
            self._load_backbone, lambda backbone: backbone.nbytes, cache_bytes - heads_bytes
        )
        self._trunks = Trunks()
        # Around every call of a module, and nothing slower: choosing an engine traces the network,
        # and torch's tracer replaces `nn.Module.__call__` for the whole process meanwhile
        self._device_lock = threading.Lock()
        self._unbuilt: set[BackboneKey] = set()  # loaded, and a faster engine may come
        self._mixed_batches = 0
        self._batches = 0
        self._images = 0

    @property
    def best_batch_images(self) -> int:
        """How many images a forward pass should have at most, by measurement."""
        return _CPU_BATCH_IMAGES if self._device.type == "cpu" else _GPU_BATCH_IMAGES

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
        artifact = describe_artifact(self._blobs, digest)
        return BackboneKey(*artifact.backbone_key, artifact=artifact)

    def pin_backbone(self, key: BackboneKey) -> Pinned[LoadedBackbone]:
        """Return a backbone, loaded; blocks while it loads.

        Raises:
            GraftError: As `pin`.
        """
        with self._needing_memory("while loading"):
            return self._backbones.pin(key)

    def pin_backbone_if_loaded(self, key: BackboneKey) -> Pinned[LoadedBackbone] | None:
        """Return a backbone if it is loaded; never blocks."""
        return self._backbones.pin_if_loaded(key)

    def adopt_built_engines(self) -> None:
        """Swap engines for those built since; batches under way and queued ones end as they are.

        Raises:
            DeviceUnavailable: There is no memory for both.
        """
        for key in list(self._unbuilt):
            if self._engines.is_wanted(_engine_key(key)):
                continue
            self._unbuilt.discard(key)  # it is there, or cannot be had
            with self._needing_memory("while loading"):
                engine = self._built_engine(key)
                if engine is not None:
                    images = golden_images(key.artifact.facts.preprocessing.crop_px)
                    features = self._features(engine, images, key)
                    loaded = LoadedBackbone(engine, images, features, None)
                    self._backbones.replace(key, loaded)

    def preprocess(
        self, model: Model, data: bytes | memoryview, preprocessed: bool = False
    ) -> Pixels:
        """Turn an encoded image into uint8 `[crop, crop, 3]`; as training does, by construction.

        With `preprocessed` the data is what the network takes; see `pixels_of_tensor`.

        Raises:
            ImageError: It cannot be decoded, or is larger than the limits, or no such tensor.
        """
        facts = model.preprocessing
        if preprocessed:
            return pixels_of_tensor(data, facts)
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
            outcomes = answers_of(images)
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
            "loaded_trunks": self._trunks.occupancy().count,
            "loaded_bytes": sum(kind.loaded_bytes for kind in self.occupancy().values()),
            "batches": self._batches,
            "mixed_batches": self._mixed_batches,
            "images": self._images,
        }

    def occupancy(self) -> dict[str, Occupancy]:
        """Return what is loaded, by kind."""
        return {
            "head": self._heads.occupancy(),
            "backbone": self._backbones.occupancy(),
            "trunk": self._trunks.occupancy(),
        }

    def _load_head(self, digest: str) -> LoadedHead:
        """Read what predicting needs of an artifact, each file once, and check its outputs.

        The golden images went through the backbone when that was loaded.
        """
        artifact = describe_artifact(self._blobs, digest)
        key = BackboneKey(*artifact.backbone_key, artifact=artifact)
        weight, bias = load_head(artifact, self._blobs)
        with self._backbones.pin(key) as backbone:

            def outputs_of(images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
                if np.array_equal(images, backbone.golden_images):
                    features = backbone.golden_features
                else:  # of an artifact that another program made
                    features = self._features(backbone.engine, images, key)
                return features, torch.from_numpy(features.numpy() @ weight.T + bias)

            check_golden(outputs_of, artifact, self._blobs)
        familiarity = None
        if FAMILIARITY_FILE in artifact.files:
            familiarity = packed(Familiarity.of(read_familiarity(self._blobs, artifact)))
        return LoadedHead(artifact, key, weight, bias, familiarity)

    def _load_backbone(self, key: BackboneKey) -> LoadedBackbone:
        images = golden_images(key.artifact.facts.preprocessing.crop_px)
        engine, wanted, trunk = self._built_engine(key), None, None
        if engine is None:
            trunk, engine = self._torch_engines(key)
            if self._may_be_built(key.artifact) and self._engines.is_wanted(_engine_key(key)):
                facts = key.artifact.facts
                assert facts.weights is not None  # checked when the artifact was read
                wanted = engine_spec(key.architecture, facts.weights, facts.preprocessing)
                self._unbuilt.add(key)
        features = self._features(engine, images, key, trunk)
        return LoadedBackbone(engine, images, features, wanted, trunk)

    def _features(
        self,
        engine: Engine,
        images: NDArray[np.uint8],
        key: BackboneKey,
        trunk: Trunk | None = None,
    ) -> Tensor:
        pixels, preprocessing = torch.from_numpy(images), key.artifact.facts.preprocessing
        with self._device_lock, torch.inference_mode():
            if trunk is None:
                return engine.features(pixels, preprocessing)
            activations = trunk.engine.outputs(trunk.engine.input_of(pixels, preprocessing))
            return engine.outputs(activations).float().cpu()

    def _built_engine(self, key: BackboneKey) -> Engine | None:
        """Return the engine that was built of a backbone, if it gives what the artifact says."""
        artifact = key.artifact
        engine = self._engines.load(_engine_key(key)) if self._may_be_built(artifact) else None
        if engine is None:
            return None

        def features_of(images: NDArray[np.uint8]) -> Tensor:
            return self._features(engine, images, key)

        return engine if gives_golden_features(features_of, artifact, self._blobs) else None

    def _may_be_built(self, artifact: Artifact) -> bool:
        return self._device.type == "cpu" and artifact.facts.kind == "head"

    def _torch_engines(self, key: BackboneKey) -> tuple[Trunk | None, Engine]:
        """Return the engine of an artifact's backbone, and the trunk that it shares if it does."""
        artifact, preprocessing = key.artifact, key.artifact.facts.preprocessing
        weights_path = None
        if artifact.facts.kind == "head":
            assert artifact.facts.weights is not None  # checked when the artifact was read
            weights_path = verified_weights(self._weights_folder, artifact.facts.weights)
        backbone = load_classifier(artifact, self._blobs, weights_path).backbone
        network = self._cut(backbone, artifact)
        probe = torch.from_numpy(golden_images(preprocessing.crop_px)).to(self._device)
        batch = normalised(probe, preprocessing)
        if network is None:
            return None, self._engine_for(backbone, batch)
        assert artifact.facts.weights is not None  # what it was compared with
        trunk_key = replace(
            key, sha256=str(artifact.facts.weights["sha256"]), boundary=network.boundary
        )
        trunk = self._trunks.shared(trunk_key, lambda: self._engine_for(network.frozen, batch))
        with self._device_lock:
            activations = trunk.engine.outputs(batch)
        return trunk, self._engine_for(network.learning, activations)

    def _cut(self, backbone: nn.Module, artifact: Artifact) -> CutNetwork | None:
        """Return a network in two, where its first stages are as they were before training."""
        if artifact.facts.kind == "head":
            return None
        tuned = tuned_tensors(backbone, artifact, self._weights_folder)
        if not tuned:  # nobody can tell, or nothing of it is its own
            return None
        with self._device_lock:  # it traces
            return cut_at_boundary(backbone, tuned)

    def _engine_for(self, network: nn.Module, batch: Tensor) -> Engine:
        def exclusive() -> AbstractContextManager[Any]:
            return self._device_lock

        return choose_engine_for(freeze(network, self._device), batch, exclusive)

    @contextmanager
    def _needing_memory(self, when: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceUnavailable(str(self._device), f"out of memory {when}") from error


def _engine_key(key: BackboneKey) -> EngineKey:
    return EngineKey(key.architecture, key.sha256, key.preprocessing_digest)


def _pinned_model(head: Pinned[LoadedHead], backbone: Pinned[LoadedBackbone]) -> Pinned[Model]:
    def release() -> None:
        head.release()
        backbone.release()

    return Pinned(Model(head.value, backbone.value), release)
