"""Frozen forward passes: images in, pooled features out, each image once.

Decides how an image becomes a network's input (`normalised`), which engine runs the pass, and
how features are cached. The fast engine, convolutions with their BatchNorm folded in, is used
only where it reproduces the eager network on the images at hand.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer
from torch.fx.experimental.optimization import fuse

from models_cache import durable
from models_cache.backbones import has_batch_norm
from models_cache.preprocessing import Preprocessing

EAGER = "eager channels-last"
FOLDED = "eager channels-last, BatchNorm folded"

# How torch, and oneDNN for its scratch memory, say on the CPU that an allocation failed: neither
# has a class of its own for that. A shape that oneDNN cannot do has another sentence.
_CPU_ALLOCATION_FAILED = ("can't allocate memory", "could not create a primitive")
_NOT_SUPPORTED = "primitive descriptor"
# Measured on mobilenet_v2: folding changes features of magnitude 6 by 5e-5.
_ENGINE_TOLERANCE = 1e-4  # largest difference, relative to the largest feature


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the CPU or on an accelerator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    sentence = str(error)
    failed = any(words in sentence for words in _CPU_ALLOCATION_FAILED)
    return isinstance(error, RuntimeError) and failed and _NOT_SUPPORTED not in sentence


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn pixels uint8 `[B, H, W, 3]` into a network's input, float32 `[B, 3, H, W]`.

    The result is a view in channels-last order, which is how pixels arrive and what convolutions
    are fastest with.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def freeze(backbone: nn.Module, device: torch.device) -> nn.Module:
    """Put a backbone on a device in eval mode, channels-last, and return it."""
    # torch annotates `to` without its keyword of memory format
    placed: nn.Module = backbone.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


@dataclass(frozen=True)
class Engine:
    """What runs a frozen forward pass.

    Args:
        name: Part of the numerics identity, `EAGER` or `FOLDED`.
        forward: float32 `[B, 3, H, W]` -> features float32 `[B, D]`.
    """

    name: str
    forward: nn.Module

    @torch.inference_mode()
    def features(self, pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Return features, float32 `[B, D]` on the CPU, of pixels uint8 `[B, H, W, 3]`."""
        device = next(self.forward.parameters()).device
        batch = normalised(pixels.to(device, non_blocking=True), preprocessing)
        features: Tensor = self.forward(batch)
        return features.float().cpu()


def choose_engine(
    backbone: nn.Module,
    probe: Tensor,
    preprocessing: Preprocessing,
    exclusive: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Engine:
    """Return the fastest engine that gives the eager network's features on `probe`.

    The choice depends on the network alone, never on timing: it is part of the cache key.

    Args:
        backbone: A frozen backbone; see `freeze`.
        probe: Pixels uint8 `[B, H, W, 3]`; two images suffice.
        preprocessing: What turns them into input.
        exclusive: Held around the trace and each forward pass, where other threads run modules:
            torch's tracer replaces `nn.Module.__call__` for the whole process meanwhile.
    """
    eager = Engine(EAGER, backbone)
    if not has_batch_norm(backbone):
        return eager
    try:
        copied = copy.deepcopy(backbone)
        with exclusive():
            graph = Tracer().trace(copied)
        # The folding can take a hundred times as long as the trace, and disturbs nobody
        folded = Engine(FOLDED, fuse(GraphModule(copied, graph), inplace=True, no_trace=True))
    except Exception as error:  # control flow that cannot be traced raises anything
        if is_out_of_memory(error):  # with more memory the choice would be another
            raise
        return eager
    freeze(folded.forward, probe.device)
    with exclusive():
        expected = eager.features(probe, preprocessing)
    with exclusive():
        found = folded.features(probe, preprocessing)
    difference = (expected - found).abs().max()
    fits = bool(difference <= _ENGINE_TOLERANCE * expected.abs().max())
    return folded if fits else eager


def extract_features(
    engine: Engine, batches: Iterable[Tensor], preprocessing: Preprocessing
) -> Tensor:
    """Return the features of all images, float32 `[N, D]` on the CPU, in their order.

    Args:
        engine: What runs the pass.
        batches: Pixels uint8 `[B, H, W, 3]`, any number of batches.
        preprocessing: What turns them into input.
    """
    return torch.cat([engine.features(pixels, preprocessing) for pixels in batches])


@dataclass(frozen=True)
class FeatureKey:
    """What must be equal for cached features to be the ones that would be computed.

    Args:
        dataset_digest: Which images, in manifest order.
        architecture: Which network.
        weights_sha256: Which values in it.
        preprocessing_digest: What it is shown of an image.
        numerics: Versions, device, threads, engine and batch size.
    """

    dataset_digest: str
    architecture: str
    weights_sha256: str
    preprocessing_digest: str
    numerics: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over all parts, the output's name and the view."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return durable.sha256_of_bytes(
            durable.canonical_json({**parts, "output": "pooled", "view": "center-crop"})
        )


class FeatureCache:
    """Features on disk, one file per key; any file may be deleted at any time.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: FeatureKey) -> Path:
        """Return where the features of a key are or would be."""
        return self._root / f"{key.digest}.safetensors"

    def read(self, key: FeatureKey) -> Tensor | None:
        """Return the features of a key, float32 `[N, D]`; None if absent or damaged."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                promised = (file.metadata() or {}).get("sha256")
                features: Tensor = file.get_tensor("features")
        except (FileNotFoundError, SafetensorError):
            return None
        if _sha256(features) != promised:
            return None
        with suppress(OSError):  # the time of last use, for whoever bounds the cache
            os.utime(path)
        return features

    def write(self, key: FeatureKey, features: Tensor) -> None:
        """Store the features of a key, float32 `[N, D]`."""
        features = features.contiguous()
        data = save({"features": features}, metadata={"sha256": _sha256(features)})
        durable.write_bytes(self.path(key), data, point="features")


def _sha256(tensor: Tensor) -> str:
    return durable.sha256_of_bytes(tensor.numpy().tobytes())
