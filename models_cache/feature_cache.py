"""Features on disk, by the content of the image: each image passes a backbone once.

What decides a feature besides the image is a context (`FeatureKey`). The rows of a context lie in
segments, files that are written once and named by their content: writers never meet, and any file
may be deleted at any time. A new version of a dataset adds one segment with its new images.

Where segments become many, the writer puts the small ones together: the new file is on disk before
the first old one goes, so that whatever is killed or runs beside it, no row is ever gone. A reader
that comes too late for a file it has listed finds its rows in one that it has not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models_cache import durable, faults
from models_cache.errors import InsufficientStorage
from models_cache.pixels import DECODER

SUFFIX = ".safetensors"
CENTER_CROP = "center-crop"

_MOST_SEGMENTS = 8  # of one context; more are put together
_MOST_MERGED_BYTES = 64 << 20  # of one segment: what is rewritten at once, and evicted at once
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
        looked_at = set[Path]()
        while missing and (paths := [p for p in self.segments(key) if p not in looked_at]):
            looked_at.update(paths)
            for path in paths:
                for image, row in _rows(path, missing):
                    found[image] = row
                    missing.discard(image)
                if not missing:
                    break
        return found

    def write(self, key: FeatureKey, images: Sequence[str], features: Tensor) -> None:
        """Store rows, float32 `[N, D]`, by the SHA-256 of their images."""
        self._store(key, images, features, "features")
        with suppress(InsufficientStorage):  # nobody waits for it
            self._merge(key)

    def _merge(self, key: FeatureKey) -> None:
        """Put the smallest segments of a context together if it has many."""
        paths = self.segments(key)
        if len(paths) <= _MOST_SEGMENTS:
            return
        rows, merged = dict[str, Tensor](), list[Path]()
        for path in _smallest(paths):
            found = list(_rows(path, None))  # none where another writer was faster
            if found:
                rows = dict(found) | rows
                merged.append(path)
        if len(merged) < 2:
            return
        images = sorted(rows)
        features = torch.stack([rows[image] for image in images])
        kept = self._store(key, images, features, "features_merge")
        for path in merged:
            if path != kept:
                faults.reach("features_merge.before_unlink")
                path.unlink(missing_ok=True)

    def _store(self, key: FeatureKey, images: Sequence[str], features: Tensor, point: str) -> Path:
        """Write a segment durably and return its path."""
        table = torch.frombuffer(bytearray.fromhex("".join(images)), dtype=torch.uint8)
        tensors = {
            "images": table.reshape(len(images), _SHA256_BYTES),
            "features": features.contiguous(),
        }
        checksums = {name: _sha256(tensor) for name, tensor in tensors.items()}
        content = durable.sha256_of_bytes(durable.canonical_json(checksums))
        path = self._root / f"{key.digest}-{content}{SUFFIX}"
        durable.write_bytes(path, save(tensors, metadata=checksums), point=point)
        return path


def _smallest(paths: Sequence[Path]) -> list[Path]:
    """Return as many of the smallest files as may be put together."""
    sized: list[tuple[int, Path]] = []
    for path in paths:
        with suppress(FileNotFoundError):  # another writer was faster
            sized.append((path.stat().st_size, path))
    sized.sort()
    sums_bytes = accumulate(size_bytes for size_bytes, _ in sized)
    return [
        path
        for (_, path), sum_bytes in zip(sized, sums_bytes, strict=True)
        if sum_bytes <= _MOST_MERGED_BYTES
    ]


def _rows(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the wanted rows of a segment, or all; none if it is gone or damaged."""
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        checksums = file.metadata() or {}
        table = file.get_tensor("images")
        if _sha256(table) != checksums.get("images"):
            return
        names = table.numpy().tobytes().hex()
        width = 2 * _SHA256_BYTES
        images = [names[start : start + width] for start in range(0, len(names), width)]
        chosen = [row for row, image in enumerate(images) if wanted is None or image in wanted]
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
