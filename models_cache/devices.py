"""Which device a name of the settings means."""

from __future__ import annotations

import torch
from threadpoolctl import ThreadpoolController

from models_cache.errors import DeviceUnavailable


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:0` means here; a GPU with its number.

    Raises:
        DeviceUnavailable: It is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Makes the CUDA context, so that it fails now or never; and knows the card's number
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailable(name[:40], str(error).splitlines()[0]) from error
    return device


def keep_array_products_to_one_thread() -> None:
    """Have NumPy multiply matrices in the calling thread alone, in the whole process.

    Measured on two busy cores: 16 images by a head of 1,000 classes take 0.6 ms with one thread
    and up to 176 ms with two, which wait for each other while others have the cores.
    """
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def use_full_float32() -> None:
    """Compute convolutions in float32: with TF32 a GPU does not give golden outputs of a CPU."""
    # Said in both ways that torch has: `torch.export` refuses a process where they differ
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
