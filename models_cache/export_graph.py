"""What an export computes: uint8 images of any size in, probabilities and logits out.

One module of plain tensor operations for every format. Sizes are tensors here, never Python
numbers, so that a tracer and `torch.export` both keep them free.

Resizing is two products with matrices of weights, one per axis. The centre that is cut out has a
fixed size, so only its rows are computed, and no shape depends on the image behind the products.
Both products are rounded to whole values, as Pillow does. What differs from `models_cache.decode`
are values that lie just between two whole ones, by 1 of 255, rarely 2: measured, 1 of 150 to
100,000, and 1 of 14 where 8 pixels become 9.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models_cache.artifacts import MULTILABEL, ArtifactFacts
from models_cache.backbones import Classifier
from models_cache.preprocessing import Interpolation, Preprocessing

_SHARPNESS = -0.5  # of Pillow's bicubic kernel
_TINY = 1e-9  # what rows outside of the image are divided by


class ResizeAndCrop(nn.Module):
    """Resize the shorter side, antialiased, and cut out the centre; black where it sticks out.

    Source:
        `Resample.c` of Pillow: kernels, their support and the rounding between the passes.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._resize_px = preprocessing.resize_px
        self._crop_px = preprocessing.crop_px
        self._kernel = _KERNELS[preprocessing.interpolation]

    def forward(self, images: Tensor) -> Tensor:
        """Return whole values 0..255, float32 `[B, 3, crop, crop]`, of uint8 `[B, H, W, 3]`."""
        rows = torch.arange(images.shape[1], device=images.device)
        columns = torch.arange(images.shape[2], device=images.device)
        shorter_px = torch.minimum(rows[-1], columns[-1]) + 1
        planes = images.permute(0, 3, 1, 2).float()  # [B, 3, H, W]
        narrow = _rounded(planes @ self._weights(columns, shorter_px).T)  # [B, 3, H, crop]
        return _rounded(self._weights(rows, shorter_px) @ narrow)

    def _weights(self, places: Tensor, shorter_px: Tensor) -> Tensor:
        """Return what each kept place takes of each place of an axis, float32 `[crop, N]`.

        Args:
            places: 0 to N - 1.
            shorter_px: Of the image, before.
        """
        before_px = places[-1] + 1
        after_px = self._resize_px * before_px // shorter_px
        kept = torch.arange(self._crop_px, device=places.device) + self._start(after_px)
        scale = before_px.double() / after_px
        centres = (kept.double() + 0.5) * scale
        weights = self._kernel(places.double() + 0.5 - centres[:, None], scale.clamp(min=1))
        shares = weights / weights.sum(1, keepdim=True).clamp(min=_TINY)
        inside = (kept >= 0) & (kept < after_px)
        return (shares * inside[:, None]).float()

    def _start(self, after_px: Tensor) -> Tensor:
        """Return where the centre begins; below 0 where the image is smaller than it."""
        surplus = (after_px - self._crop_px) / 2
        # Half to even, as `decode.center_crop`; padding puts the odd row behind
        start = torch.where(surplus >= 0, surplus.round(), surplus.ceil())
        return start.long()


class ImageGraph(nn.Module):
    """A published model with everything around it: pixels in, probabilities out.

    Args:
        classifier: In eval mode, on the CPU.
        facts: Of its artifact.
    """

    def __init__(self, classifier: Classifier, facts: ArtifactFacts) -> None:
        super().__init__()
        self._centre = ResizeAndCrop(facts.preprocessing)
        self._classifier = classifier
        self._is_multilabel = facts.task == MULTILABEL
        self._temperature = 1.0 if facts.calibration is None else facts.calibration.temperature
        for name in ("mean", "std"):
            values = torch.tensor(getattr(facts.preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.reshape(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits, float32 `[B, C]` each, of uint8 `[B, H, W, 3]`."""
        pixels = self._centre(images) / 255
        logits = self._classifier((pixels - self.get_buffer("mean")) / self.get_buffer("std"))
        calibrated = logits / self._temperature
        if self._is_multilabel:
            return calibrated.sigmoid(), logits
        return calibrated.softmax(1), logits


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _nearest(distances_px: Tensor, _stretch: Tensor) -> Tensor:
    return ((distances_px > -0.5) & (distances_px <= 0.5)).double()


def _bilinear(distances_px: Tensor, stretch: Tensor) -> Tensor:
    return (1 - (distances_px / stretch).abs()).clamp(min=0)


def _bicubic(distances_px: Tensor, stretch: Tensor) -> Tensor:
    x, a = (distances_px / stretch).abs(), _SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


#: Distance of a place to a kept one's centre, and how far shrinking stretches the kernel -> weight.
_KERNELS: dict[Interpolation, Callable[[Tensor, Tensor], Tensor]] = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
}
