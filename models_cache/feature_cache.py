"""Features on disk, by the content of the image: each image passes a backbone once.

What decides a feature besides the image is a context (`FeatureKey`). The rows of a context lie in
segments, files that are written once and named by their content: writers never meet, and any file
may be deleted at any time. A new version of a dataset adds one segment with its new images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models_cache import durable
from models_cache.pixels import DECODER

SUFFIX = ".safetensors"
CENTER_CROP = "center-crop"

_SHA256_BYTES = 32
_FORMAT = 2


@dataclass(frozen=True)
class FeatureKey:
    """What must be equal, besides the image, for a cached feature to be the one computed now.

    Args:
        architecture: Which network.
        weights_sha256: Which values in it.
        preprocessing_digest: What it is shown of an image.
        numerics: Versions, device, threads, engine and batch size.
        view: Which part or change of the image.
        decoder: What turned its bytes into pixels.
    """

    architecture: str
    weights_sha256: str
    preprocessing_digest: str
    numerics: dict[str, Any]
    view: str = CENTER_CROP
    decoder: str = DECODER

    @property
    def digest(self) -> str:
        """SHA-256 over all parts and the output's name."""
        parts = {**asdict(self), "output": "pooled", "format": _FORMAT}
        return durable.sha256_of_bytes(durable.canonical_json(parts))


class FeatureCache:
    """A folder of segments.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def segments(self, key: FeatureKey) -> list[Path]:
        """Return the files of a context, in a fixed order."""
        return sorted(self._root.glob(f"{key.digest}-*{SUFFIX}"))

    def read(self, key: FeatureKey, images: Sequence[str]) -> dict[str, Tensor]:
        """Return the rows that are there, float32 `[D]` by the SHA-256 of the image.

        Segments that hold none of these images are not read, damaged ones are passed over.
        """
        missing, found = set(images), dict[str, Tensor]()
        for path in self.segments(key):
            if not missing:
                break
            for image, row in _rows(path, missing):
                found[image] = row
                missing.discard(image)
        return found

    def write(self, key: FeatureKey, images: Sequence[str], features: Tensor) -> None:
        """Store rows, float32 `[N, D]`, by the SHA-256 of their images."""
        table = torch.frombuffer(bytearray.fromhex("".join(images)), dtype=torch.uint8)
        tensors = {
            "images": table.reshape(len(images), _SHA256_BYTES),
            "features": features.contiguous(),
        }
        checksums = {name: _sha256(tensor) for name, tensor in tensors.items()}
        content = durable.sha256_of_bytes(durable.canonical_json(checksums))
        path = self._root / f"{key.digest}-{content}{SUFFIX}"
        durable.write_bytes(path, save(tensors, metadata=checksums), point="features")


def _rows(path: Path, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted rows of a segment; none if it is gone or damaged."""
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        checksums = file.metadata() or {}
        table = file.get_tensor("images")
        if _sha256(table) != checksums.get("images"):
            return
        names = table.numpy().tobytes().hex()
        width = 2 * _SHA256_BYTES
        images = [names[start : start + width] for start in range(0, len(names), width)]
        chosen = [row for row, image in enumerate(images) if image in wanted]
        if not chosen:
            return
        features = file.get_tensor("features")
        if _sha256(features) != checksums.get("features") or len(features) != len(images):
            return
        os.utime(path)  # the time of last use, for whoever bounds the cache
        for row in chosen:
            yield images[row], features[row]


def _sha256(tensor: Tensor) -> str:
    return durable.sha256_of_bytes(tensor.numpy().tobytes())
