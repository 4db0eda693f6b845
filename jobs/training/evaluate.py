"""What a classifier says about images as serving would show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from models_cache.backbones import Classifier
from models_cache.features import normalised
from models_cache.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Outputs:
    """Features float32 `[N, D]` and logits float32 `[N, C]` of N images, on the CPU."""

    features: Tensor
    logits: Tensor


def predict_logits(
    model: Classifier,
    dataset: LoadedDataset,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    batch_size: int,
    poll: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return the logits of the model in eval mode, float32 `[N, C]` on the CPU.

    The same pixels and the same forward pass as the predictor's: what is measured here is what
    will be served. The model is left in eval mode.

    Args:
        model: On any device.
        dataset: Where the images are.
        indices: Positions of the N images.
        preprocessing: What turns them into input.
        batch_size: Images per forward pass.
        poll: Called before every batch; may raise.
    """
    batches = _batches(dataset, indices, preprocessing, batch_size)
    logits = []
    for pixels in batches:
        poll()
        logits.append(_outputs(model, pixels, preprocessing).logits)
    return torch.cat(logits)


def predict_outputs(
    model: Classifier,
    dataset: LoadedDataset,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    batch_size: int,
) -> Outputs:
    """Return the features too; otherwise as `predict_logits`."""
    batches = _batches(dataset, indices, preprocessing, batch_size)
    found = [_outputs(model, pixels, preprocessing) for pixels in batches]
    return Outputs(
        torch.cat([outputs.features for outputs in found]),
        torch.cat([outputs.logits for outputs in found]),
    )


def _batches(
    dataset: LoadedDataset,
    indices: NDArray[np.int64],
    preprocessing: Preprocessing,
    batch_size: int,
) -> Iterator[Tensor]:
    """Yield what the network is shown, uint8 `[B, crop, crop, 3]`."""
    for start in range(0, len(indices), batch_size):
        yield dataset.center_crops(indices[start : start + batch_size], preprocessing.crop_px)


@torch.inference_mode()
def _outputs(model: Classifier, pixels: Tensor, preprocessing: Preprocessing) -> Outputs:
    model.eval()
    features = model.backbone(normalised(pixels.to(model.head.weight.device), preprocessing))
    return Outputs(features.float().cpu(), model.head(features).float().cpu())
