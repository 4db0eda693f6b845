"""What training does to an image before the network sees it, as a function of given draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from jobs.training.batched_crops import mirrored, moved_together, resized
from jobs.training.policies import randaugment, trivialaugment
from jobs.training.schedule import DRAWS_PER_IMAGE
from models_cache.decode import center_crop

Pixels = NDArray[np.uint8]

_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image before the network sees it.

    Args:
        name: `none`, `flip`, `crop`, `randaugment` or `trivialaugment`; each from `crop` on
            begins with what `crop` does.
        area_min: Smallest part of the area that a crop keeps.
        crop_px: Side of the result.
        device: Where pixels are changed, and where the result is.
    """

    name: str
    area_min: float
    crop_px: int
    device: torch.device

    @property
    def views(self) -> int | None:
        """How many different pictures an image can become; None if any number."""
        return {"none": 1, "flip": 2}.get(self.name)

    def view(self, draw: NDArray[np.float64]) -> int:
        """Return which of the `views` an image becomes: 1 if it is flipped, else 0."""
        return int(self.name != "none" and draw[0] < 0.5)

    def pictures(self, dataset: LoadedDataset, indices: NDArray[np.int64], view: int) -> Tensor:
        """Return one of the `views` of some images, uint8 `[B, crop, crop, 3]`."""
        draws = np.full((len(indices), DRAWS_PER_IMAGE), 1.0 - view)
        return self.batch(dataset, indices, draws)

    def batch(
        self,
        dataset: LoadedDataset,
        indices: Sequence[int] | NDArray[np.int64],
        draws: NDArray[np.float64],
    ) -> Tensor:
        """Return augmented images, uint8 `[B, crop, crop, 3]`, contiguous.

        Args:
            dataset: Where the pixels are.
            indices: Positions of the B images.
            draws: Uniform numbers in 0..1, float64 `[B, 8]`: all the randomness there is.
        """
        pairs = zip(indices, draws, strict=True)
        cuts = [self._cut(dataset.pixels.image(int(i)), draw) for i, draw in pairs]
        images = self._cropped(cuts, [self.view(draw) == 1 for draw in draws])
        policy = _POLICIES.get(self.name)
        if policy is None:
            return images
        changed = [
            policy(image.permute(2, 0, 1), (draw[5], draw[6])).permute(1, 2, 0)
            for image, draw in zip(images, draws, strict=True)
        ]
        return torch.stack(changed)

    def _cut(self, pixels: Pixels, draw: NDArray[np.float64]) -> Pixels:
        if self.views is not None:
            return center_crop(pixels, self.crop_px)
        return random_rectangle(pixels, draw, self.area_min)

    def _cropped(self, cuts: Sequence[Pixels], flips: Sequence[bool]) -> Tensor:
        if self.views is not None:
            return mirrored(moved_together(cuts, self.device), flips)
        if self.device.type != "cpu":
            return resized(cuts, flips, self.crop_px, self.device)
        pairs = zip(cuts, flips, strict=True)
        return torch.stack([_resized_on_cpu(cut, flip, self.crop_px) for cut, flip in pairs])


_POLICIES = {"randaugment": randaugment, "trivialaugment": trivialaugment}


def random_rectangle(pixels: Pixels, draw: NDArray[np.float64], area_min: float) -> Pixels:
    """Cut a rectangle of random area, aspect and place, uint8 `[h, w, 3]`.

    As torchvision's `RandomResizedCrop`, but from four given numbers: a rectangle that does not
    fit is shrunk, where torchvision draws again.

    Args:
        pixels: uint8 `[H, W, 3]`.
        draw: Uniform numbers; the second to the fifth are used.
        area_min: Smallest part of the area that is kept.
    """
    height_px, width_px = pixels.shape[:2]
    area = height_px * width_px * (area_min + (1 - area_min) * draw[1])
    aspect = math.exp(_LOG_ASPECTS[0] + (_LOG_ASPECTS[1] - _LOG_ASPECTS[0]) * draw[2])
    wide = min(width_px, max(1, round(math.sqrt(area * aspect))))
    high = min(height_px, max(1, round(math.sqrt(area / aspect))))
    top = int(draw[3] * (height_px - high + 1))
    left = int(draw[4] * (width_px - wide + 1))
    return pixels[top : top + high, left : left + wide]


def _resized_on_cpu(cut: Pixels, flip: bool, px: int) -> Tensor:
    """Return a rectangle as a square, uint8 `[px, px, 3]`: in whole numbers, which is faster."""
    image = torch.from_numpy(cut.copy())  # the mapped file is read-only
    image = image.permute(2, 0, 1)[None]  # [1, 3, h, w], channels-last
    square = F.interpolate(image, size=(px, px), mode="bilinear", antialias=True)
    square = square[0].permute(1, 2, 0)
    return square.flip(1) if flip else square
