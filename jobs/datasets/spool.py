"""Decoded pixels between decoding, which ends in any order, and packing, which needs the order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jobs.datasets.errors import TooManyPixels
from models_cache.decode import Pixels
from models_cache.durable import raise_if_full

_CHANNELS = 3


class PixelSpool:
    """A temporary file of images by their hash; read with `pread`, so that nothing is mapped.

    Args:
        path: A new file; the owner removes it.
        limit_bytes: Of all images together.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._file = path.open("x+b")
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._places: dict[str, tuple[int, int, int]] = {}

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._places

    def add(self, sha256: str, pixels: Pixels) -> None:
        """Append an image: uint8 `[H, W, 3]`.

        Raises:
            TooManyPixels: All images together are over the limit.
            InsufficientStorage: The disk is full.
        """
        if self._size_bytes + pixels.nbytes > self._limit_bytes:
            raise TooManyPixels(self._limit_bytes)
        try:
            self._file.write(np.ascontiguousarray(pixels).data)
        except OSError as error:
            raise_if_full(error, "decoding the upload")
            raise
        self._places[sha256] = (self._size_bytes, pixels.shape[0], pixels.shape[1])
        self._size_bytes += pixels.nbytes

    def read(self, sha256: str) -> Pixels:
        """Return an image that was added: uint8 `[H, W, 3]`."""
        offset, height_px, width_px = self._places[sha256]
        self._file.flush()
        data = bytearray(height_px * width_px * _CHANNELS)
        done = 0
        while done < len(data):
            done += os.preadv(self._file.fileno(), [memoryview(data)[done:]], offset + done)
        return np.frombuffer(data, np.uint8).reshape(height_px, width_px, _CHANNELS)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
