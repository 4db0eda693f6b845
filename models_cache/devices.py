"""Which device a name of the settings means."""

from __future__ import annotations

import torch

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
