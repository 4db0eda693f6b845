"""How pixels become a network's input, and a network one that only looks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models_cache.preprocessing import Preprocessing

# How torch on the CPU, oneDNN for its scratch memory, and CUDA and its libraries say that an
# allocation failed which was not torch's own: none has a class for that. A shape that oneDNN
# cannot do has another sentence.
_ALLOCATION_FAILED = (
    "can't allocate memory",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
_NOT_SUPPORTED = "primitive descriptor"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the CPU or on an accelerator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    sentence = str(error)
    failed = any(words in sentence for words in _ALLOCATION_FAILED)
    return isinstance(error, RuntimeError) and failed and _NOT_SUPPORTED not in sentence


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn pixels uint8 `[B, H, W, 3]` into a network's input, float32 `[B, 3, H, W]`.

    The result is a view in channels-last order, which is how pixels arrive and what convolutions
    are fastest with.
    """
    mean, std = (  # copied without waiting for what the device has still to do
        torch.tensor(values, dtype=torch.float32).to(pixels.device, non_blocking=True)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def normalised_planes(
    pixels: NDArray[np.uint8] | NDArray[np.float32], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Turn pixels `[B, H, W, 3]`, 0 to 255, into float32 `[B, 3, H, W]` in that order in memory.

    The same bits as `normalised`, by one thread, image by image: each stays in the core's cache,
    and threads of torch would wait for the cores that decode.
    """
    mean, std = (
        np.array(values, np.float32)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    count, height_px, width_px, _ = pixels.shape
    planes = np.empty((count, 3, height_px, width_px), np.float32)
    for image, plane in zip(pixels, planes, strict=True):
        plane[...] = image.transpose(2, 0, 1)
        plane /= np.float32(255)
        plane -= mean
        plane /= std
    return planes


def freeze(backbone: nn.Module, device: torch.device) -> nn.Module:
    """Put a backbone on a device in eval mode, channels-last, and return it."""
    # torch annotates `to` without its keyword of memory format
    placed: nn.Module = backbone.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
