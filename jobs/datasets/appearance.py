"""What an image looks like, in 200 bytes: enough to find copies that were saved again.

Computed from the resized pixels of the one decode, so an image of an earlier version, of which only
those are at hand, gets the same answer.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models_cache.contrast import contrast
from models_cache.decode import Pixels

_REDUCED_PX = 32
_FREQUENCIES = 8  # per axis: the hash has one bit for each of their 64 pairs
_COLOURS_PX = 8
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_COSINES = np.cos(
    np.pi / (2 * _REDUCED_PX)
    * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_REDUCED_PX) + 1)
)  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """What an image looks like.

    Args:
        hash: 64 bits: which low frequencies of its brightness are above their median.
        colours: Its 8 x 8 mean colours, RGB, 192 bytes.
        contrast: Standard deviation of its most varied channel, of 255 levels.
        sharpness: Variance of the Laplacian of its brightness.
    """

    hash: int
    colours: bytes
    contrast: float
    sharpness: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        colours = base64.b64encode(self.colours).decode()
        return {**self.__dict__, "colours": colours}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Appearance:
        """Rebuild from `as_json`'s form."""
        return cls(**{**value, "colours": base64.b64decode(value["colours"])})


def appearance_of(pixels: Pixels) -> Appearance:
    """Describe an image.

    Args:
        pixels: uint8 `[H, W, 3]`, upright, of the size that packs have.

    Source:
        The hash is pHash: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
        Functions", section 3.2.1, with the constant term replaced by nothing: it is bit 0, unset.
    """
    image = Image.fromarray(pixels)
    small = np.asarray(image.resize((_REDUCED_PX, _REDUCED_PX), Image.Resampling.BOX))
    block = _REDUCED_PX // _COLOURS_PX
    colours = small.reshape(_COLOURS_PX, block, _COLOURS_PX, block, 3).mean(
        axis=(1, 3)
    )  # [8, 8, 3]
    return Appearance(
        hash=_hash(small @ _GREY),
        colours=colours.round().astype(np.uint8).tobytes(),
        contrast=round(contrast(pixels), 2),
        sharpness=round(_sharpness(np.asarray(image.convert("L"))), 1),
    )


def _hash(grey: NDArray[np.float32]) -> int:
    """Return the 64 bits of a brightness image, float32 `[32, 32]`."""
    terms = (_COSINES @ grey @ _COSINES.T).ravel()[1:]  # without the mean brightness
    bits = np.concatenate([[False], terms > np.median(terms)])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _sharpness(grey: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian, which blur lowers most; uint8 `[H, W]`."""
    if min(grey.shape) < 3:
        return 0.0
    levels = grey.astype(np.int16)
    centre, rows, columns = levels[1:-1, 1:-1], levels[:, 1:-1], levels[1:-1]
    laplacian = 4 * centre - rows[:-2] - rows[2:] - columns[:, :-2] - columns[:, 2:]
    return float(laplacian.var(dtype=np.float32))
