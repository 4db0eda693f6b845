"""Mixup and cutmix: images of a batch mixed in pairs, and their targets with them.

What is mixed with what follows from (seed, step) for the whole batch, so it does not matter
whether the batch then passes the network at once or in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_CUTMIX_PART = 0.5  # of the steps, where both are on, as in timm


@dataclass(frozen=True)
class Mixing:
    """How the images of one batch are mixed.

    Args:
        partners: For each image the position in the batch of the one it is mixed with, `[B]`.
        kept: Part of each image that stays, and of its target.
        box: Rows and columns that come from the partner, as parts of the sides from 0 to 1:
            top, bottom, left, right; None where whole images are blended.
    """

    partners: NDArray[np.int64]
    kept: float
    box: tuple[float, float, float, float] | None = None

    def images(
        self, load: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64]
    ) -> Tensor:
        """Return some images of the batch, mixed.

        Args:
            load: Gives the images at positions of the batch, float32 `[R, 3, H, W]`.
            rows: The positions, `[R]`.
        """
        own, other = load(rows), load(self.partners[rows])
        if self.box is None:
            return own.mul_(self.kept).add_(other, alpha=1 - self.kept)
        top, bottom, left, right = self._pixels(*own.shape[-2:])
        own[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return own

    def targets(
        self, load: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64], px: int
    ) -> Tensor:
        """Return the targets of these images, mixed as they are.

        Args:
            load: Gives the targets at positions of the batch, probabilities `[R, C]`.
            rows: The positions, `[R]`.
            px: Side of the images: a rectangle covers whole pixels.
        """
        kept = self.kept
        if self.box is not None:
            top, bottom, left, right = self._pixels(px, px)
            kept = 1 - (bottom - top) * (right - left) / (px * px)
        return kept * load(rows) + (1 - kept) * load(self.partners[rows])

    def _pixels(self, height_px: int, width_px: int) -> tuple[int, int, int, int]:
        assert self.box is not None
        sides = (height_px, height_px, width_px, width_px)
        top, bottom, left, right = (
            round(part * side) for part, side in zip(self.box, sides, strict=True)
        )
        return top, bottom, left, right


def draw_mixing(
    count: int, mixup_alpha: float, cutmix_alpha: float, generator: np.random.Generator
) -> Mixing | None:
    """Return how a batch is mixed; None if it is not.

    Args:
        count: Images of the batch.
        mixup_alpha: Blends get their part from Beta(alpha, alpha); 0 for none.
        cutmix_alpha: Rectangles get their area from Beta(alpha, alpha); 0 for none.
        generator: All the randomness there is.

    Source: Zhang et al. 2018, arXiv:1710.09412 (mixup); Yun et al. 2019, arXiv:1905.04899
    (cutmix; the rectangle is cut off at the image's edge).
    """
    if mixup_alpha == cutmix_alpha == 0:
        return None
    partners = generator.permutation(count)
    coin = generator.random()
    if cutmix_alpha == 0 or (mixup_alpha > 0 and coin >= _CUTMIX_PART):
        return Mixing(partners, float(generator.beta(mixup_alpha, mixup_alpha)))
    kept = float(generator.beta(cutmix_alpha, cutmix_alpha))
    half = math.sqrt(1 - kept) / 2
    row, column = generator.random(2)
    low, high = (
        np.clip([row - half, column - half], 0, 1),
        np.clip([row + half, column + half], 0, 1),
    )
    box = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    return Mixing(partners, kept, box)
