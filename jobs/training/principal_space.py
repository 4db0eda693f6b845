"""Features as a head's solver sees them: centred, scaled, on their principal axes.

One common scale, so that a penalty means the same for every backbone; the penalty does not see a
rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs.errors import FeaturesNotFinite

_PRINCIPAL_AXES = 2048  # more are not looked for: 4096 would take 10 s


@dataclass(frozen=True)
class PrincipalSpace:
    """Features in the solver's coordinates, and the way back.

    With fewer images N than features D the solution lies in the span of the images, so N numbers
    per image carry the whole problem.

    Args:
        rows: Float `[N, R]`.
        centre: Of the raw features, float64 `[D]`.
        scale: Of the centred features, float64 scalar.
        axes: Orthonormal columns, float `[D, R]`; None where features were not rotated.
    """

    rows: Tensor
    centre: Tensor
    scale: Tensor
    axes: Tensor | None

    @classmethod
    def of(cls, features: Tensor, dtype: torch.dtype) -> PrincipalSpace:
        """Turn raw features, float32 `[N, D]`, into rows of a type.

        Raises:
            FeaturesNotFinite: A feature is NaN or infinite.
        """
        bad = int((~torch.isfinite(features)).any(dim=1).sum())
        if bad:
            raise FeaturesNotFinite(bad, len(features))
        centre = features.mean(dim=0, dtype=torch.float64)
        rows = features.to(dtype) - centre.to(dtype)
        scale = rows.square().mean(dim=0, dtype=torch.float64).sqrt().mean()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        rows /= scale.to(dtype)
        if min(rows.shape) > _PRINCIPAL_AXES:
            return cls(rows, centre, scale, None)
        axes = None
        if rows.shape[0] < rows.shape[1]:
            axes, _ = torch.linalg.qr(rows.T)  # [D, N]
            rows = rows @ axes
        _, rotation = torch.linalg.eigh((rows.T @ rows).double())
        rotation = rotation.to(dtype)
        for chunk in rows.split(_PRINCIPAL_AXES):
            chunk.copy_(chunk @ rotation)  # in place: no second copy of many images
        return cls(rows, centre, scale, rotation if axes is None else axes @ rotation)

    def layer(self, parameters: Tensor) -> nn.Linear:
        """Return the layer on raw features for solver parameters `[R + 1, C]`."""
        weight = parameters[:-1]
        if self.axes is not None:
            weight = self.axes @ weight
        weight = weight.T.double() / self.scale  # [C, D]
        bias = parameters[-1].double() - weight @ self.centre
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer
