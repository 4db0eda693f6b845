"""RandAugment and TrivialAugment as functions of given draws.

torchvision's own transforms draw from torch's global generator, so what an image becomes would
depend on every draw before it: neither a resumed training nor one with smaller batches would see
the same images. The operations are torchvision's, and so are the tables of their strengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torchvision.transforms.v2.functional as tv
from torch import Tensor

_BINS = 31  # strengths of an operation, from none to its greatest
_RANDAUGMENT_BIN = 9  # torchvision's default; the paper tunes it
_RANDAUGMENT_OPERATIONS = 2


@dataclass(frozen=True)
class _Strengths:
    """The greatest strength of each kind of operation.

    Args:
        shear: Tangent of the angle.
        translate: Part of the side; None for 32 px whatever the side.
        degrees: Of a rotation.
        colour: Change of the factor of brightness, contrast, saturation and sharpness.
        bits: How many bits of 8 posterising takes away.
    """

    shear: float
    translate: float | None
    degrees: float
    colour: float
    bits: int

    def translate_px(self, side_px: int) -> float:
        """Return the greatest shift of an image with that side."""
        return 32.0 if self.translate is None else self.translate * side_px


_RANDAUGMENT = _Strengths(shear=0.3, translate=150 / 331, degrees=30.0, colour=0.9, bits=4)
_TRIVIALAUGMENT = _Strengths(shear=0.99, translate=None, degrees=135.0, colour=0.99, bits=6)


def randaugment(image: Tensor, draws: tuple[float, float]) -> Tensor:
    """Apply two operations of medium strength, each drawn from all 14.

    Args:
        image: uint8 `[3, H, W]`.
        draws: Uniform numbers in 0..1, one for each operation and its sign.

    Returns:
        uint8 `[3, H, W]`.

    Source: Cubuk et al. 2019, arXiv:1909.13719.
    """
    for draw in draws[:_RANDAUGMENT_OPERATIONS]:
        operation, rest = _pick(draw, len(_OPERATIONS))
        sign = -1.0 if rest <= 0.5 else 1.0
        strength = _RANDAUGMENT_BIN / (_BINS - 1)
        image = _OPERATIONS[operation](image, _RANDAUGMENT, strength, sign)
    return image


def trivialaugment(image: Tensor, draws: tuple[float, float]) -> Tensor:
    """Apply one operation, drawn from all 14, of any strength.

    Args:
        image: uint8 `[3, H, W]`.
        draws: Uniform numbers in 0..1: one for the operation and its sign, one for the strength.

    Returns:
        uint8 `[3, H, W]`.

    Source: Müller and Hutter 2021, arXiv:2103.10158 (TrivialAugment Wide).
    """
    operation, rest = _pick(draws[0], len(_OPERATIONS))
    bin_, _ = _pick(draws[1], _BINS)
    sign = -1.0 if rest <= 0.5 else 1.0
    return _OPERATIONS[operation](image, _TRIVIALAUGMENT, bin_ / (_BINS - 1), sign)


def _pick(draw: float, count: int) -> tuple[int, float]:
    """Split a uniform number into a whole one below `count` and what is left, uniform again."""
    scaled = draw * count
    index = min(int(scaled), count - 1)
    return index, scaled - index


_Operation = Callable[[Tensor, _Strengths, float, float], Tensor]


def _identity(image: Tensor, _limits: _Strengths, _strength: float, _sign: float) -> Tensor:
    return image


def _affine(image: Tensor, shift_px: tuple[int, int], shear: tuple[float, float]) -> Tensor:
    degrees = [math.degrees(math.atan(tangent)) for tangent in shear]
    # Sheared around the corner, as the papers do; a shift has no centre
    moved: Tensor = tv.affine(image, 0.0, list(shift_px), 1.0, degrees, center=[0.0, 0.0])
    return moved


def _shear_x(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
    return _affine(image, (0, 0), (sign * strength * limits.shear, 0.0))


def _shear_y(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
    return _affine(image, (0, 0), (0.0, sign * strength * limits.shear))


def _translate_x(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
    shift_px = int(sign * strength * limits.translate_px(image.shape[-1]))
    return _affine(image, (shift_px, 0), (0.0, 0.0))


def _translate_y(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
    shift_px = int(sign * strength * limits.translate_px(image.shape[-2]))
    return _affine(image, (0, shift_px), (0.0, 0.0))


def _rotate(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
    rotated: Tensor = tv.rotate(image, sign * strength * limits.degrees)
    return rotated


def _factor(adjust: Callable[[Tensor, float], Tensor]) -> _Operation:
    def apply(image: Tensor, limits: _Strengths, strength: float, sign: float) -> Tensor:
        return adjust(image, 1.0 + sign * strength * limits.colour)

    return apply


def _posterize(image: Tensor, limits: _Strengths, strength: float, _sign: float) -> Tensor:
    posterized: Tensor = tv.posterize(image, 8 - round(strength * limits.bits))
    return posterized


def _solarize(image: Tensor, _limits: _Strengths, strength: float, _sign: float) -> Tensor:
    solarized: Tensor = tv.solarize(image, 255 * (1.0 - strength))
    return solarized


def _plain(change: Callable[[Tensor], Tensor]) -> _Operation:
    def apply(image: Tensor, _limits: _Strengths, _strength: float, _sign: float) -> Tensor:
        return change(image)

    return apply


_OPERATIONS: tuple[_Operation, ...] = (
    _identity,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _factor(tv.adjust_brightness),
    _factor(tv.adjust_saturation),
    _factor(tv.adjust_contrast),
    _factor(tv.adjust_sharpness),
    _posterize,
    _solarize,
    _plain(tv.autocontrast),
    _plain(tv.equalize),
)
