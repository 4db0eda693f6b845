"""What training does to an image before the network sees it, as a function of given draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from models_cache.decode import center_crop

Pixels = NDArray[np.uint8]

_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))  # as torchvision's RandomResizedCrop


def training_batch(
    dataset: LoadedDataset,
    indices: Sequence[int] | NDArray[np.int64],
    draws: NDArray[np.float64],
    crop_px: int,
    policy: tuple[str, float],
) -> Tensor:
    """Return augmented images, uint8 `[B, crop, crop, 3]`.

    Args:
        dataset: Where the pixels are.
        indices: Positions of the B images.
        draws: Uniform numbers in 0..1, float64 `[B, 8]`: all the randomness there is.
        crop_px: Side of the result.
        policy: `none`, `flip` or `crop`, and the smallest part of the area that a crop keeps.
    """
    augmentation, area_min = policy
    images = []
    for index, draw in zip(indices, draws, strict=True):
        pixels = dataset.pixels.image(int(index))
        if augmentation == "crop":
            image = random_resized_crop(pixels, draw, crop_px, area_min)
        else:
            image = torch.from_numpy(center_crop(pixels, crop_px).copy())  # a view is read-only
        flip = augmentation != "none" and draw[0] < 0.5
        images.append(image.flip(1) if flip else image)
    return torch.stack(images)


def random_resized_crop(
    pixels: Pixels, draw: NDArray[np.float64], crop_px: int, area_min: float
) -> Tensor:
    """Cut a rectangle of random area, aspect and place, resized; uint8 `[crop, crop, 3]`.

    As torchvision's `RandomResizedCrop`, but from four given numbers: a rectangle that does not
    fit is shrunk, where torchvision draws again.

    Args:
        pixels: uint8 `[H, W, 3]`.
        draw: Uniform numbers; the second to the fifth are used.
        crop_px: Side of the result.
        area_min: Smallest part of the area that is kept.
    """
    height_px, width_px = pixels.shape[:2]
    area = height_px * width_px * (area_min + (1 - area_min) * draw[1])
    aspect = math.exp(_LOG_ASPECTS[0] + (_LOG_ASPECTS[1] - _LOG_ASPECTS[0]) * draw[2])
    wide = min(width_px, max(1, round(math.sqrt(area * aspect))))
    high = min(height_px, max(1, round(math.sqrt(area / aspect))))
    top = int(draw[3] * (height_px - high + 1))
    left = int(draw[4] * (width_px - wide + 1))
    cut = pixels[top : top + high, left : left + wide].copy()  # the mapped file is read-only
    image = torch.from_numpy(cut).permute(2, 0, 1)[None]  # [1, 3, h, w], channels-last
    resized = F.interpolate(image, size=(crop_px, crop_px), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0)
