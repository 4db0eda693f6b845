"""Which GPUs this process may use, and how much memory of each is free; found without torch.

The driver counts the GPUs of the machine, torch counts those that `CUDA_VISIBLE_DEVICES` leaves, in
the order it names them. Here they are told apart by what the driver calls them, and stand in
torch's order, which is the driver's where `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jobs.memory import Memory

_DRIVER_LIBRARY = "libnvidia-ml.so.1"
_DEVICE_FILES = "nvidia[0-9]*"
_UUID_BYTES = 96  # with the closing zero
_MIG, _GPU = "MIG-", "GPU-"


def visible_gpus(visible: str | None) -> tuple[str, ...]:
    """Return the names of the GPUs that torch finds, in its order.

    Args:
        visible: The variable `CUDA_VISIBLE_DEVICES`; None if it is not set.
    """
    return chosen_gpus(_names(), visible)


def chosen_gpus(names: Sequence[str], visible: str | None) -> tuple[str, ...]:
    """Return which GPUs of a machine `CUDA_VISIBLE_DEVICES` leaves, in the order it gives them.

    Args:
        names: UUIDs of all GPUs, `GPU-...`, in the driver's order.
        visible: The variable; None leaves all. Numbers, the beginnings of UUIDs, or UUIDs of
            parts of a GPU (`MIG-...`), of which CUDA takes the first alone. What is behind the
            first entry that names nothing is not looked at; a GPU named twice leaves none.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if visible is None:
        return tuple(names)
    found: list[str] = []
    for entry in map(str.strip, visible.split(",")):
        if entry.startswith(_MIG):
            return (entry,)
        name = _named(entry, names)
        if name is None:
            break
        if name in found:
            return ()
        found.append(name)
    return tuple(found)


def _named(entry: str, names: Sequence[str]) -> str | None:
    if entry.isdecimal():
        return names[int(entry)] if int(entry) < len(names) else None
    matching = [name for name in names if name.startswith(entry)]
    return matching[0] if entry.startswith(_GPU) and len(matching) == 1 else None


def gpu_memory(name: str) -> Memory | None:
    """Return the memory of a GPU or of a part of one; None if the driver cannot be asked.

    Source: NVML, `nvmlDeviceGetMemoryInfo`. Asking takes less than a millisecond; `nvidia-smi`,
    which asks the same, takes tens to hundreds.
    """
    driver = _driver()
    if driver is None:
        return None
    device, memory = ctypes.c_void_p(), _MemoryInfo()
    uuid = ctypes.c_char_p(name.encode())
    if driver.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(device)) != 0:
        return None
    if driver.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
        return None
    return Memory(memory.total, memory.free)


class _MemoryInfo(ctypes.Structure):
    """`nvmlMemory_t`, in bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


@cache
def _driver() -> ctypes.CDLL | None:
    """Return the driver's library, ready to be asked; None where there is none."""
    try:
        driver = ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return None
    return driver if driver.nvmlInit_v2() == 0 else None


def _names() -> list[str]:
    """Return the UUIDs of all GPUs in the driver's order."""
    driver, count = _driver(), ctypes.c_uint()
    if driver is None or driver.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        # A container may have the GPU without the library: it can be used, and not asked
        return [file.name for file in sorted(Path("/dev").glob(_DEVICE_FILES))]
    return [_uuid(driver, index) for index in range(count.value)]


def _uuid(driver: ctypes.CDLL, index: int) -> str:
    """Return the UUID of a GPU; its number where the driver does not tell, as of a lost one."""
    device, text = ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_BYTES)
    found = driver.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
    if found != 0 or driver.nvmlDeviceGetUUID(device, text, ctypes.c_uint(_UUID_BYTES)) != 0:
        return str(index)
    return text.value.decode()
