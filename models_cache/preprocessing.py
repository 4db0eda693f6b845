"""What turns an upright image into a network's input, as data.

Stored with weights and artifacts and read by training, evaluation, serving and export alike: the
one place where size, interpolation, mean and standard deviation come from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from models_cache.durable import canonical_json, sha256_of_bytes

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0..1, normalise.

    Args:
        resize_px: Length of the shorter side after resizing.
        crop_px: Side of the square cut out of the centre; padded with black if larger.
        interpolation: Antialiased kernel of the resize.
        mean: Per channel (RGB), of values in 0..1.
        std: Per channel (RGB), of values in 0..1.
    """

    resize_px: int = 256
    crop_px: int = 224
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocessing:
        """Rebuild from `as_json`'s form."""
        mean, std = (tuple(float(x) for x in value[key]) for key in ("mean", "std"))
        return cls(
            resize_px=int(value["resize_px"]),
            crop_px=int(value["crop_px"]),
            interpolation=value["interpolation"],
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form: the key of caches and of shared backbones."""
        return sha256_of_bytes(canonical_json(self.as_json()))
