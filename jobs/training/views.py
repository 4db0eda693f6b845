"""What of an image a frozen backbone is shown: named, so that its features can be cached.

A view is a function of its name and the image's content: no seed, no companions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from jobs.training.augment import Augmentation
from models_cache.durable import sha256_of_bytes
from models_cache.feature_cache import CENTER_CROP

FLIP = "flip"
_CROP_AREA_MIN = 0.7  # as the augmentation of fine-tuning: smaller crops lose the object
_DRAWS = 8  # per image, see `Augmentation.batch`


def view_names(count: int, policy: str = "crop") -> list[str]:
    """Return the names of `count` views: the centre, mirrored, then random ones of a policy.

    Args:
        count: How many.
        policy: `crop`, or `trivialaugment`, which changes what it crops.
    """
    drawn = [f"{policy}:{index}" for index in range(1, count - 1)]
    return [CENTER_CROP, FLIP, *drawn][:count]


def pixels_of_view(
    dataset: LoadedDataset, view: str, indices: Sequence[int], crop_px: int
) -> Tensor:
    """Return what a view shows of some images, uint8 `[B, crop, crop, 3]`."""
    if view == CENTER_CROP:
        return dataset.center_crops(indices, crop_px)
    if view == FLIP:
        return dataset.center_crops(indices, crop_px).flip(2)
    name, _, _ = view.partition(":")
    augmentation = Augmentation(name, _CROP_AREA_MIN, crop_px, torch.device("cpu"))
    draws = [_draws(view, image) for image in dataset.contents(indices)]
    return augmentation.batch(dataset, indices, np.stack(draws))


def _draws(view: str, image: str) -> np.ndarray:
    """Return the randomness of one view of an image, float64 `[8]` in 0..1."""
    seed = int(sha256_of_bytes(f"{view}:{image}".encode()), 16)
    return np.random.Generator(np.random.PCG64(seed)).random(_DRAWS)
