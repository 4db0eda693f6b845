"""How much of everything an upload may have; each number is a field with its unit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from models_cache.decode import ImageLimits

ARRAY_SUFFIX = ".npy"  # of a file that may be as large as all images together, since it holds them

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True)
class IngestLimits:
    """Bounds of an upload; the defaults suit one machine with a few free gigabytes.

    Args:
        max_upload_bytes: The archive as sent.
        max_entries: Files and folders in it.
        max_unpacked_bytes: All files together.
        max_entry_bytes: One file.
        max_ratio: Unpacked over packed bytes, once `ratio_free_bytes` are unpacked.
        ratio_free_bytes: Below this no ratio is suspicious.
        max_directory_bytes: A zip's central directory.
        max_path_bytes: A whole name, in UTF-8.
        max_component_bytes: One part of a name between slashes, in UTF-8.
        max_depth: Parts of a name.
        max_image_pixels: Width times height, as declared by the header.
        max_side_px: The longer side.
        max_aspect: The longer side over the shorter one.
        max_classes: Class names.
        max_unreadable_fraction: More unusable images than this (and more than one) reject all.
        max_pixels_bytes: All resized images together, as kept in the pixel cache.
        decoders: Processes that decode side by side.
        decode_cpu_seconds: Processor time for one image.
        decode_wall_seconds: Time for one image on the clock, for what waits instead of computing.
        decoder_memory_bytes: Address space of a decoder, above what it has at its start.
        array_cpu_seconds: Processor time for opening an HDF5 file, and for each block of images.
        ingest_memory_bytes: Address space of the ingest child, above what it has at its start.
        ingest_cpu_seconds: Processor time of the ingest child, without its decoders.
    """

    max_upload_bytes: int = 2 * _GIB
    max_entries: int = 50_000
    max_unpacked_bytes: int = 8 * _GIB
    max_entry_bytes: int = 64 * _MIB
    max_ratio: int = 200
    ratio_free_bytes: int = 16 * _MIB
    max_directory_bytes: int = 32 * _MIB
    max_path_bytes: int = 1024
    max_component_bytes: int = 255
    max_depth: int = 16
    max_image_pixels: int = 40_000_000
    max_side_px: int = 16_384
    max_aspect: int = 64
    max_classes: int = 1000
    max_unreadable_fraction: float = 0.05
    max_pixels_bytes: int = 32 * _GIB
    decoders: int = 2
    decode_cpu_seconds: int = 10
    decode_wall_seconds: float = 60.0
    decoder_memory_bytes: int = _GIB
    array_cpu_seconds: int = 5
    ingest_memory_bytes: int = 2 * _GIB
    ingest_cpu_seconds: int = 3600

    @property
    def image(self) -> ImageLimits:
        """The part that `models_cache.decode` checks."""
        return ImageLimits(self.max_image_pixels, self.max_side_px, self.max_aspect)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IngestLimits:
        """Rebuild from `as_json`'s form; a missing field has its default.

        Raises:
            TypeError: A field is unknown.
        """
        return cls(**value)
