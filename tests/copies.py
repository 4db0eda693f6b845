"""Photographs saved again, as they come back from chat programs, web sites and photo tools."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.images import encode_image

Photo = Image.Image


def half_size(photo: Photo) -> Photo:
    return photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)


def cropped(photo: Photo) -> Photo:
    """Cut 2 % off each side."""
    x, y = round(photo.width * 0.02), round(photo.height * 0.02)
    return photo.crop((x, y, photo.width - x, photo.height - y))


def brighter(photo: Photo) -> Photo:
    return Image.fromarray(np.clip(np.asarray(photo) * 1.2, 0, 255).astype(np.uint8))


#: Name to what is done to a photograph, and the JPEG quality with which it is saved.
COPIES: Mapping[str, tuple[Callable[[Photo], Photo], int]] = {
    "quality-40": (lambda photo: photo, 40),
    "half-size": (half_size, 90),
    "cropped": (cropped, 90),
    "brighter": (brighter, 90),
    "everything": (lambda photo: brighter(cropped(half_size(photo))), 40),
}


def copied(data: bytes, how: str) -> bytes:
    """Return a photograph's file after one of `COPIES`."""
    change, quality = COPIES[how]
    photo = Image.open(BytesIO(data)).convert("RGB")
    return encode_image(change(photo), "JPEG", quality=quality)


def photographs(archive: Path) -> dict[str, bytes]:
    """Return the JPEG files of an archive by name, sorted."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".jpg"))
        return {name: files.read(name) for name in names}
