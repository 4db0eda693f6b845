"""Where only the last stages learn, what the frozen ones say of an image is computed once.

Every view of every image passes the frozen part of the network once; its outputs, the activations
at the boundary, wait in a file that is mapped into memory, and each epoch passes the learning part
alone.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models_cache.backbones import Classifier
from models_cache.cut_network import CutNetwork
from models_cache.durable import needing_space

LIMIT_BYTES = 4 << 30  # of activations; larger ones are computed again in each epoch


@dataclass(frozen=True)
class Activations:
    """Activations of all images in all their views, float32 in a file without a name.

    Args:
        values: `[V * N, ...]`, a view after the other; channels last where there are channels.
        images: N.
    """

    values: NDArray[np.float32]
    images: int

    def of(self, indices: NDArray[np.int64], view: NDArray[np.int64]) -> Tensor:
        """Return activations of some images in one of their views each, `[B, ...]`."""
        chosen = torch.from_numpy(self.values[view * self.images + indices])
        return chosen.movedim(-1, 1) if chosen.ndim == 4 else chosen


@dataclass(frozen=True)
class FrozenStages:
    """What replaces the frozen stages of a model while it trains.

    Args:
        model: Its backbone was cut.
        network: The two parts.
        train: Of the training images, in all their views.
        held_out: Of the held-out images.
    """

    model: Classifier
    network: CutNetwork
    train: Activations
    held_out: Activations

    def logits(self, activations: Tensor) -> Tensor:
        """Return logits `[B, C]` of activations `[B, ...]`."""
        logits: Tensor = self.model.head(self.network.learning(activations))
        return logits

    @torch.inference_mode()
    def held_out_logits(self, at_once: int, poll: Callable[[], None]) -> Tensor:
        """Return logits of the held-out images, float32 `[N, C]` on the CPU; see `evaluate`."""
        self.model.eval()
        device, count, logits = self.model.head.weight.device, self.held_out.images, []
        for start in range(0, count, at_once):
            poll()
            places = np.arange(start, min(start + at_once, count))
            found = self.logits(self.held_out.of(places, np.zeros_like(places)).to(device))
            logits.append(found.float().cpu())
        return torch.cat(logits)


def compute_activations(
    network: CutNetwork,
    inputs: Callable[[int, NDArray[np.int64]], Tensor],
    images: int,
    views: int,
    folder: Path,
    at_once: int,
) -> Activations | None:
    """Return the activations of all images; None if they take more than `LIMIT_BYTES`.

    Images pass in batches that do not depend on what was done before, so a resumed training
    learns from the same bits.

    Args:
        network: Its frozen part makes them.
        inputs: Gives a view of images, float32 `[B, 3, H, W]`, for its number and their places.
        images: N.
        views: V.
        folder: Where the file is; it has no name there and goes with the process.
        at_once: Images per forward pass.

    Raises:
        InsufficientStorage: The disk is full.
    """
    values: NDArray[np.float32] | None = None
    for view in range(views):
        for start in range(0, images, at_once):
            places = np.arange(start, min(start + at_once, images))
            with torch.no_grad():
                found = network.frozen(inputs(view, places)).float().cpu()
            found = found.movedim(1, -1) if found.ndim == 4 else found
            if values is None:
                shape = (views * images, *found.shape[1:])
                if 4 * math.prod(shape) > LIMIT_BYTES:
                    return None
                values = _mapped(folder, shape)
            values[view * images + places] = found.numpy()
    assert values is not None, "there are images"
    return Activations(values, images)


def _mapped(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    folder.mkdir(parents=True, exist_ok=True)
    with needing_space("caching activations"), tempfile.TemporaryFile(dir=folder) as file:
        # Written space, not a hole: a full disk is an error here and not a SIGBUS later
        os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
