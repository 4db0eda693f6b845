"""What a classifier says about images as serving would show them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from models_cache.backbones import Classifier
from models_cache.features import normalised
from models_cache.preprocessing import Preprocessing


@torch.inference_mode()
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
    model.eval()
    device = model.head.weight.device
    logits = []
    for start in range(0, len(indices), batch_size):
        poll()
        pixels = dataset.center_crops(indices[start : start + batch_size], preprocessing.crop_px)
        logits.append(model(normalised(pixels.to(device), preprocessing)).float().cpu())
    return torch.cat(logits)
