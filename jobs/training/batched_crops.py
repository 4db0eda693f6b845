"""Rectangles of a batch cut, resized and mirrored at once, for a device where calls are dear.

Image by image the crops of a batch are hundreds of calls and dozens of copies. Here they are one
copy, and two products of matrices: resizing is linear, so that a rectangle of any size times the
weights of its rows and columns is a square.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

_AT_ONCE = 32  # images resized in one go: some 60 MB of a device's memory


def moved_together(cuts: Sequence[Pixels], device: torch.device) -> Tensor:
    """Return images side by side in one tensor on a device, uint8 `[B, H, W, 3]`, in one copy.

    Args:
        cuts: B of uint8 `[h, w, 3]`; smaller ones stand at the top left, beside them is anything.
        device: Where they go; the copy does not wait for what a CUDA device has still to do.
    """
    high, wide = (max(cut.shape[axis] for cut in cuts) for axis in (0, 1))
    pinned = device.type == "cuda"
    packed = torch.empty(len(cuts), high, wide, 3, dtype=torch.uint8, pin_memory=pinned)
    pixels = packed.numpy()
    for row, cut in enumerate(cuts):
        pixels[row, : cut.shape[0], : cut.shape[1]] = cut
    return packed.to(device, non_blocking=True)


def mirrored(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Return some of the images uint8 `[B, H, W, 3]` mirrored."""
    chosen = _moved(flips, images.device)[:, None, None, None]
    return torch.where(chosen, images.flip(2), images)


def resized(cuts: Sequence[Pixels], flips: Sequence[bool], px: int, device: torch.device) -> Tensor:
    """Resize images of any size to squares, some of them mirrored; uint8 `[B, px, px, 3]`.

    Bilinear with antialiasing, as `torch.nn.functional.interpolate`, whose sums on a CPU are of
    whole numbers: values differ by at most 1.

    Args:
        cuts: B of uint8 `[h, w, 3]`.
        flips: Which of them are mirrored.
        px: Side of the squares.
        device: Where they are resized.
    """
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(cuts), _AT_ONCE)]
    return torch.cat([_resized(cuts[part], flips[part], px, device) for part in parts])


def _resized(
    cuts: Sequence[Pixels], flips: Sequence[bool], px: int, device: torch.device
) -> Tensor:
    images = moved_together(cuts, device)
    count, high, wide, _ = images.shape
    sizes = _moved([cut.shape[:2] for cut in cuts], device).float()  # [B, 2]
    rows = _weights(sizes[:, 0], px, high)  # [B, px, H]
    columns = _weights(sizes[:, 1], px, wide)  # [B, px, W]
    columns = torch.where(_moved(flips, device)[:, None, None], columns.flip(1), columns)
    by_channel = images.permute(0, 1, 3, 2).float().reshape(count, high * 3, wide)
    narrow = torch.bmm(by_channel, columns.transpose(1, 2))  # [B, H * 3, px]
    square = torch.bmm(rows, narrow.view(count, high, 3 * px))  # [B, px, 3 * px]
    whole = square.round_().clamp_(0, 255).to(torch.uint8).view(count, px, 3, px)
    return whole.permute(0, 1, 3, 2).contiguous()


def _weights(sizes: Tensor, px: int, most: int) -> Tensor:
    """Return what each place of a side counts in each of the result, float32 `[B, px, most]`.

    Args:
        sizes: Of the sides that are resized, float32 `[B]`.
        px: Of the result.
        most: The greatest of the sizes.
    """
    scale = (sizes / px)[:, None, None]
    centres = (torch.arange(px, device=sizes.device)[:, None] + 0.5) * scale  # [B, px, 1]
    places = torch.arange(most, device=sizes.device) + 0.5  # [most]
    distance = (places - centres).abs_() / scale.clamp(min=1)
    weights = (1 - distance).clamp_(min=0) * (places < sizes[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def _moved(values: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(values).to(device, non_blocking=True)
