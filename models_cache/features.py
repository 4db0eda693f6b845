"""How pixels become a network's input, and a network one that only looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models_cache.preprocessing import Preprocessing

# How torch, and oneDNN for its scratch memory, say on the CPU that an allocation failed: neither
# has a class of its own for that. A shape that oneDNN cannot do has another sentence.
_CPU_ALLOCATION_FAILED = ("can't allocate memory", "could not create a primitive")
_NOT_SUPPORTED = "primitive descriptor"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on the CPU or on an accelerator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    sentence = str(error)
    failed = any(words in sentence for words in _CPU_ALLOCATION_FAILED)
    return isinstance(error, RuntimeError) and failed and _NOT_SUPPORTED not in sentence


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn pixels uint8 `[B, H, W, 3]` into a network's input, float32 `[B, 3, H, W]`.

    The result is a view in channels-last order, which is how pixels arrive and what convolutions
    are fastest with.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def freeze(backbone: nn.Module, device: torch.device) -> nn.Module:
    """Put a backbone on a device in eval mode, channels-last, and return it."""
    # torch annotates `to` without its keyword of memory format
    placed: nn.Module = backbone.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
