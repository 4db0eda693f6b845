"""Draws the project's test images, and packs them into archives as users would.

Two shapes on noise: enough for a network to learn, small enough to be drawn in a millisecond.
Everything is decided by a seed, so a test fails the same way twice.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Buffer

SHAPES = ("disc", "square", "cross", "stripes")
_COLOURS = {"disc": (220, 60, 50), "square": (60, 90, 220), "cross": (60, 180, 70)}
_FIXED_TIME = (2020, 1, 1, 0, 0, 0)


def draw_shape(shape: str, seed: int = 0, size: tuple[int, int] = (48, 40)) -> NDArray[np.uint8]:
    """Return a coloured shape at a random place on noise: uint8 `[H, W, 3]`.

    Args:
        shape: One of `SHAPES`.
        seed: Decides place, size and noise.
        size: Width and height in pixels.
    """
    width, height = size
    random = np.random.default_rng([seed, SHAPES.index(shape)])
    pixels = random.integers(90, 160, (height, width, 3), dtype=np.uint8)
    radius = min(size) * random.uniform(0.2, 0.35)
    x0, y0 = (random.uniform(radius, max(radius + 1e-6, side - radius)) for side in size)
    y, x = np.mgrid[:height, :width]
    dx, dy = np.abs(x - x0), np.abs(y - y0)
    masks = {
        "disc": dx**2 + dy**2 < radius**2,
        "square": (dx < radius * 0.85) & (dy < radius * 0.85),
        "cross": ((dx < radius / 3) & (dy < radius)) | ((dy < radius / 3) & (dx < radius)),
        "stripes": (dx < radius) & (dy < radius) & (y // 2 % 2 == 0),
    }
    pixels[masks[shape]] = _COLOURS.get(shape, (230, 210, 60))
    return pixels


def encode(pixels: NDArray[Any], format_name: str = "JPEG", **options: object) -> bytes:
    """Encode pixels (any array that Pillow takes) in any of Pillow's formats."""
    return encode_image(Image.fromarray(pixels), format_name, **options)


def encode_image(image: Image.Image, format_name: str, **options: object) -> bytes:
    """Encode a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def tiff_bytes(
    row: bytes, width: int, bits: tuple[int, ...], photometric: int, extra_sample: int | None = None
) -> bytes:
    """Write a TIFF of one uncompressed row, in forms that Pillow reads and does not write.

    Args:
        row: The samples, packed.
        width: In pixels.
        bits: Of each sample of a pixel; all the same, at most two.
        photometric: 0 if zero is white, 1 if it is black.
        extra_sample: What the second sample is: 1 associated alpha, 2 unassociated.
    """
    short, long = 3, 4
    tags = {256: (short, width), 257: (short, 1), 259: (short, 1), 262: (short, photometric)}
    tags |= {277: (short, len(bits)), 278: (short, 1), 279: (long, len(row)), 273: (long, 0)}
    if extra_sample is not None:
        tags[338] = (short, extra_sample)
    row_at = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = (long, row_at)
    fields = {tag: struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items()}
    values = (*bits, 0)[:2]
    fields[258] = struct.pack("<HHIHH", 258, short, len(bits), *values)
    directory = b"".join(fields[tag] for tag in sorted(fields))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + row


def shape_bytes(shape: str, seed: int = 0, format_name: str = "JPEG") -> bytes:
    """Draw and encode one shape."""
    return encode(draw_shape(shape, seed), format_name)


def class_folders(
    classes: Sequence[str] = ("disc", "square"),
    per_class: int = 5,
    prefix: str = "",
    first_seed: int = 0,
) -> dict[str, bytes]:
    """Return `{"<prefix><class>/<n>.jpg": bytes}`; a class that is no shape gets one anyway."""
    files = {}
    for number, name in enumerate(classes):
        shape = name if name in SHAPES else SHAPES[number % len(SHAPES)]
        for i in range(per_class):
            seed = first_seed + 1000 * number + i
            files[f"{prefix}{name}/{i:03d}.jpg"] = shape_bytes(shape, seed)
    return files


def split_folders(
    classes: Sequence[str] = ("disc", "square"), train: int = 5, val: int = 3, prefix: str = ""
) -> dict[str, bytes]:
    """Return class folders under `train/` and `val/`, no image in both."""
    return {
        **class_folders(classes, train, f"{prefix}train/"),
        **class_folders(classes, val, f"{prefix}val/", first_seed=500),
    }


def zip_bytes(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Pack files into a zip, the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.compress_type = method
            archive.writestr(info, data)
    return buffer.getvalue()


def streamed_zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Pack files into a zip as a writer that cannot seek does: sizes follow the data."""

    class Unseekable(io.RawIOBase):
        def __init__(self) -> None:
            self.buffer = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Buffer) -> int:
            self.buffer += data
            return memoryview(data).nbytes

    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), data)
    return bytes(stream.buffer)


def tar_bytes(
    files: Mapping[str, bytes], mode: str = "w", dialect: int = tarfile.PAX_FORMAT
) -> bytes:
    """Pack files into a tar (`mode="w:gz"`: a tar.gz)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=dialect) as archive:  # type: ignore[call-overload]  # mode is one of its literals
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """Pack files into a zip at `path`, and return it."""
    path.write_bytes(zip_bytes(files))
    return path
