"""A manifest and its packed pixels as arrays and tensors; a missing pack is rebuilt from blobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.manifest import ImageEntry, Manifest
from models_cache.artifacts import MULTILABEL
from models_cache.blobs import BlobStore
from models_cache.decode import ImageLimits, center_crop, decode_rgb, resize_shorter_side
from models_cache.pixels import PackedPixels, PixelCache, PixelKey

Pixels = NDArray[np.uint8]

#: What ingest accepted is decoded, whatever its limits were then.
CHECKED_AT_INGEST = ImageLimits(max_pixels=1 << 31, max_side_px=1 << 31, max_aspect=1 << 31)
_AHEAD_PER_THREAD = 4  # decoded images that wait for the writer: bounds memory


@dataclass(frozen=True)
class LoadedDataset:
    """All images of a dataset, decoded, upright and resized, in manifest order.

    Args:
        manifest: What the images are.
        pixels: Their pixels, mapped from disk.
    """

    manifest: Manifest
    pixels: PackedPixels

    @cached_property
    def labels(self) -> Tensor:
        """Class index of every image, int64 `[N]`; with several labels float32 `[N, C]`, 0 or 1."""
        entries = self.manifest.images
        if self.manifest.task != MULTILABEL:
            return torch.tensor([entry.label for entry in entries])
        labels = torch.zeros(len(entries), len(self.manifest.classes))
        for row, entry in enumerate(entries):
            labels[row, list(entry.labels)] = 1
        return labels

    def indices(self, split: str) -> NDArray[np.int64]:
        """Return the positions of a split's images, int64, ascending."""
        entries = enumerate(self.manifest.images)
        return np.array([i for i, entry in entries if entry.split == split], dtype=np.int64)

    def contents(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the SHA-256 of each image's bytes: equal ones are copies."""
        return [self.manifest.images[i].sha256 for i in indices]

    def center_crops(self, indices: Sequence[int] | NDArray[np.int64], crop_px: int) -> Tensor:
        """Return what serving would show the network, uint8 `[B, crop, crop, 3]`."""
        crops = [center_crop(self.pixels.image(int(i)), crop_px) for i in indices]
        return torch.from_numpy(np.stack(crops))


def load_dataset(
    blobs: BlobStore,
    cache: PixelCache,
    manifest: Manifest,
    key: PixelKey,
    threads: int,
    report: Callable[[int, int], None],
) -> LoadedDataset:
    """Return a dataset's images at the size of `key`, decoding them only if no pack has them.

    Args:
        blobs: The uploaded files.
        cache: Where packs are kept.
        manifest: The dataset.
        key: Its digest, size and interpolation.
        threads: Images decoded at once.
        report: Called with images done and their total, only while decoding.

    Raises:
        BlobMissing: An image is gone from the data folder.
        BlobCorrupt: An image's bytes changed on disk.
    """
    pixels = cache.open(key)
    if pixels is None:
        cache.write(key, _decoded(blobs, manifest.images, key, threads, report))
        pixels = cache.open(key)
    assert pixels is not None, "a pack that was just written can be opened"
    return LoadedDataset(manifest, pixels)


def _decoded(
    blobs: BlobStore,
    entries: Sequence[ImageEntry],
    key: PixelKey,
    threads: int,
    report: Callable[[int, int], None],
) -> Iterator[Pixels]:
    def decode(entry: ImageEntry) -> Pixels:
        # Pillow lets go of the interpreter lock while it decodes and resizes.
        upright = decode_rgb(blobs.read(entry.sha256), CHECKED_AT_INGEST)
        return resize_shorter_side(upright, key.resize_px, key.interpolation)

    window = max(1, threads) * _AHEAD_PER_THREAD
    with ThreadPoolExecutor(max(1, threads), "decode") as pool:
        waiting = [pool.submit(decode, entry) for entry in entries[:window]]
        for done in range(len(entries)):
            pixels = waiting.pop(0).result()
            if done + window < len(entries):
                waiting.append(pool.submit(decode, entries[done + window]))
            yield pixels
            report(done + 1, len(entries))
