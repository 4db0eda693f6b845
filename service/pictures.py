"""Pictures of a data set for people to look at: re-encoded, so that nothing a stranger sent is."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from models_cache.decode import decode_rgb, resize_shorter_side


def as_png(data: bytes, shorter_side_px: int | None = None) -> bytes:
    """Return an encoded image as upright PNG without metadata, shrunk if a side is given."""
    pixels = decode_rgb(data)
    if shorter_side_px is not None and min(pixels.shape[:2]) > shorter_side_px:
        pixels = resize_shorter_side(pixels, shorter_side_px, "bilinear")
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
