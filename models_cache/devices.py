"""Which device a name of the settings means, and how a process uses its cores and its memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch
from threadpoolctl import ThreadpoolController

from models_cache.errors import DeviceUnavailable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


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


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, in the whole process; only glibc can.

    Activations of a batch are large: they would go back to the system and come again page by page
    for each batch. Measured on two cores, 16 images of 8 networks that share a trunk take 0.75
    of the time of 8 passes with this, and 1.35 without. What a process has had it keeps.
    """
    with suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        c_library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


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
