"""Where an attempt computes, and with which numerics: decided once, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchvision

from jobs.memory import peak_bytes_of_process
from models_cache.devices import use_full_float32

_BFLOAT16_SINCE = (8, 0)  # older cards only emulate it
_FLOAT16_SINCE = (7, 0)  # tensor cores


@dataclass(frozen=True)
class Numerics:
    """What decides the last bits of a result: part of receipts and of the feature-cache key.

    Args:
        torch: Version of torch.
        torchvision: Version of torchvision.
        device: `cpu`, or the name of the accelerator.
        threads: CPU threads of one operation; 1 and 2 give different sums.
        deterministic: Whether operations that add up in any order are kept from it, where torch
            has another version of them.
        dtype: Type of frozen forward passes.
        training_dtype: Type of forward passes that are learned from.
    """

    torch: str
    torchvision: str
    device: str
    threads: int
    deterministic: bool
    dtype: str = "float32"
    training_dtype: str = "float32"

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def set_up(device: torch.device, threads: int) -> Numerics:
    """Fix threads and precision of this process and return what they are.

    Called before the first operation: the number of threads cannot change afterwards without
    changing results.
    """
    torch.set_num_threads(max(1, threads))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory and streams take no other card's context
    use_full_float32()  # what is learned from, features and batches, is in bfloat16 on CUDA
    torch.backends.cudnn.benchmark = False  # picking kernels by timing is not reproducible
    # Several CPU threads add gradients of indexed values (Swin's and MaxViT's position tables) in
    # any order otherwise, and a resumed training would not have the bits of a whole one. Every
    # operation of torchvision's networks has a deterministic version on the CPU. On CUDA adaptive
    # pooling to several pixels (AlexNet, VGG) has none for its gradient: torch warns in the log.
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    # Filling what is overwritten anyway costs time. torch does not annotate the setting.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return Numerics(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        deterministic=True,
        dtype=_frozen_dtype(device),
        training_dtype=training_dtype(device),
    )


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most memory this process has had, in bytes: the next job of the kind fits."""
    peaks = {"peak_memory_bytes": peak_bytes_of_process()}
    if device.type == "cuda":
        peaks["peak_device_memory_bytes"] = torch.cuda.max_memory_reserved(device)
    return peaks


def _frozen_dtype(device: torch.device) -> str:
    """Return the type of frozen passes: features in float16 could overflow, and nobody looks."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BFLOAT16_SINCE:
        return "bfloat16"
    return "float32"


def training_dtype(device: torch.device) -> str:
    """Return the type of forward passes that are learned from."""
    if device.type == "cpu":
        return "float32"
    return half_type(torch.cuda.get_device_capability(device)) or "float32"


def half_type(capability: tuple[int, int]) -> str | None:
    """Return the 16-bit type that a card multiplies faster than float32, if there is one.

    Args:
        capability: Of the card, as CUDA counts: (8, 0) is Ampere.
    """
    if capability >= _BFLOAT16_SINCE:
        return "bfloat16"
    return "float16" if capability >= _FLOAT16_SINCE else None
