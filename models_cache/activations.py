"""How much a network keeps of an image while it learns: the largest part of a training's memory."""

from __future__ import annotations

import torch
from torch import Tensor

from models_cache.backbones import build_on_meta

_IMAGES = 2  # of the pass that is counted: BatchNorm refuses one


def activation_bytes(architecture: str, input_px: int) -> int:
    """Return the float32 bytes that the backward pass of one image needs, parameters not counted.

    The network learns as a whole. It is built and run without memory for its values.

    Args:
        architecture: A classification builder.
        input_px: Side of the image.
    """
    network = build_on_meta(architecture, input_px=input_px)
    own = {_storage(value) for value in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no storage's number is given out again

    def keep(value: Tensor) -> Tensor:
        if _storage(value) not in own:
            kept[_storage(value)] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network(torch.empty(_IMAGES, 3, input_px, input_px, device="meta"))
    return sum(value.untyped_storage().nbytes() for value in kept.values()) // _IMAGES


def _storage(value: Tensor) -> int:
    """Return the number of a tensor's storage, which tensors without memory have too."""
    return int(value.untyped_storage()._cdata)
