"""Whether a picture shows anything at all: one rule for uploads and for images to predict."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLANK_CONTRAST = 2.0  # of 255 levels: below this a picture is of one colour
_EVERY_NTH_PX = 4  # is looked at: a twentieth of the time of all of them


def contrast(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> float:
    """Return the standard deviation of the most varied channel of `[H, W, 3]`, of 255 levels."""
    sample = pixels[::_EVERY_NTH_PX, ::_EVERY_NTH_PX].astype(np.float32)
    return float(sample.std(axis=(0, 1)).max())
