"""Tensors into a safetensors file one by one: the file is never in memory as a whole.

`safetensors.torch.save` and `save_file` hold the bytes of all tensors once or twice, which for a
checkpoint (model, optimizer, best candidate) is more than the training itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT_BYTES = 8


def write_tensors(file: BinaryIO, tensors: dict[str, Tensor]) -> str:
    """Write tensors in the safetensors format and return the SHA-256 of all that was written.

    Args:
        file: Open for writing, at its beginning.
        tensors: By name, on any device, in any memory order.

    Raises:
        KeyError: A tensor's type is none that a training state has.
        OSError: Writing failed.
    """
    # Wide types first, so that every tensor begins at a multiple of its element's size
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    digest = hashlib.sha256()
    header = _header(ordered)
    file.write(header)
    digest.update(header)
    for _, value in ordered:
        content = _content(value).data
        file.write(content)
        digest.update(content)
    return digest.hexdigest()


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    described = {}
    end = 0
    for name, value in ordered:
        start, end = end, end + value.numel() * value.element_size()
        described[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    size = _ALIGNMENT_BYTES * math.ceil(len(text) / _ALIGNMENT_BYTES)
    return struct.pack("<Q", size) + text.ljust(size)


def _content(value: Tensor) -> NDArray[np.uint8]:
    flat = value.detach().cpu().contiguous().reshape(-1)  # no copy in a device's full memory
    return flat.view(torch.uint8).numpy()
