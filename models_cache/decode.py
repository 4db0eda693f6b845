"""The one function that turns image bytes into upright RGB pixels, and the one resize.

Used by ingest, training, evaluation and serving, so that the same bytes always become the same
pixels. Pillow alone, without torch: it runs in the limited ingest child and in the api as well
(decision 0001). What never happens silently: 16-bit images are scaled instead of clipped, CMYK is
converted, EXIF orientation is applied, transparency is put on white, the first frame is taken.
Embedded colour profiles are not applied: pixels are taken as sRGB, as training data always was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models_cache.errors import (
    ImageAspectExtreme,
    ImageError,
    ImageFormatUnsupported,
    ImageModeUnsupported,
    ImageTooLarge,
    ImageUnreadable,
)
from models_cache.preprocessing import Interpolation

Pixels = NDArray[np.uint8]

SNIFF_BYTES = 18  # enough of a file's start for `sniff_format`

# The classes are called directly, not through `Image.open`: the format is decided by our own
# allow-list, no other plugin can be reached, and our tighter size limit is the one that answers.
_OPENERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
}
_MAGICS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    # Known, and refused by name: what a user should be told is not "unreadable".
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "PSD"),
)
_HEIF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
# "BM" alone may begin a text: the size of the header behind it has to be a known one, too
_BMP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})
_RESAMPLING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_UPRIGHT: dict[int, Image.Transpose] = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z0-9 ,;:()'-]{3,150}")
_ORIENTATION_TAG = 0x0112
_BITS_TAG, _PHOTOMETRIC_TAG = 258, 262
_WHITE_IS_ZERO = 0
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass(frozen=True)
class ImageLimits:
    """What an image's header may declare.

    Args:
        max_pixels: Width times height.
        max_side_px: The longer side.
        max_aspect: The longer side divided by the shorter one; resizing multiplies by it.
    """

    max_pixels: int = 40_000_000
    max_side_px: int = 16_384
    max_aspect: int = 64


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about itself before any pixel is decoded.

    Args:
        width_px: As stored; EXIF orientation may swap it with the height.
        height_px: As stored.
        format: One of `JPEG PNG WEBP BMP GIF TIFF`.
        animated: There is more than one frame; only the first is used.
        mode: How Pillow calls the way its pixels are stored, such as `RGB`, `L` or `CMYK`.
    """

    width_px: int
    height_px: int
    format: str
    animated: bool
    mode: str


def sniff_format(start: bytes) -> str | None:
    """Return the format that the first `SNIFF_BYTES` of a file claim, or None if no image's."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(start[8:12])
    if start[:2] == b"BM":
        header_bytes = int.from_bytes(start[14:18], "little")
        return "BMP" if header_bytes in _BMP_HEADER_BYTES else None
    return next((name for magic, name in _MAGICS if start.startswith(magic)), None)


def read_header(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Read and check an image's header without decoding a pixel.

    Raises:
        ImageError: As `decode_rgb`, as far as the header tells.
    """
    try:
        with _opened(data, limits) as image:
            animated = bool(getattr(image, "is_animated", False))
            return ImageHeader(image.width, image.height, str(image.format), animated, image.mode)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _unreadable(error) from error


def decode_rgb(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode an image file into upright RGB.

    Args:
        data: The whole file.
        limits: What its header may declare; checked before anything is decoded.

    Returns:
        uint8 `[H, W, 3]`, writable, owned by the caller.

    Raises:
        ImageUnreadable: The bytes are no image, or a damaged or truncated one.
        ImageFormatUnsupported: An image of a format outside the allow-list.
        ImageTooLarge: More pixels or a longer side than `limits` allow.
        ImageAspectExtreme: Longer and thinner than `limits` allow.
        ImageModeUnsupported: Floating point, signed, 12-bit or Lab pixels, which are not turned
            into 8-bit ones here.
    """
    try:
        with _opened(data, limits) as image:
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image)
        if (transpose := _UPRIGHT.get(orientation)) is not None:
            rgb = rgb.transpose(transpose)
        return np.array(rgb, dtype=np.uint8)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _unreadable(error) from error


def resize_shorter_side(pixels: Pixels, resize_px: int, interpolation: Interpolation) -> Pixels:
    """Resize so that the shorter side is `resize_px`, antialiased, keeping the aspect.

    Args:
        pixels: uint8 `[H, W, 3]`.
        resize_px: The shorter side afterwards; the longer one is rounded down, as torchvision does.
        interpolation: Kernel of the resize.

    Returns:
        uint8 `[h, w, 3]`; `pixels` itself if it already has that size.

    Raises:
        ImageAspectExtreme: The result would be more than 64 times longer than wide.
    """
    height_px, width_px = pixels.shape[:2]
    short_px, long_px = sorted((height_px, width_px))
    _check_aspect(width_px, height_px, DEFAULT_LIMITS.max_aspect)
    if short_px == resize_px:
        return pixels
    longer_px = int(resize_px * long_px / short_px)
    size = (resize_px, longer_px) if width_px <= height_px else (longer_px, resize_px)
    resized = Image.fromarray(pixels).resize(size, _RESAMPLING[interpolation])
    return np.array(resized, dtype=np.uint8)


def center_crop(pixels: Pixels, crop_px: int) -> Pixels:
    """Cut the central square out, as torchvision's `CenterCrop`; black where it sticks out.

    Args:
        pixels: uint8 `[H, W, 3]`.
        crop_px: Side of the square.

    Returns:
        uint8 `[crop_px, crop_px, 3]`, contiguous.
    """
    height_px, width_px = pixels.shape[:2]
    missing_y, missing_x = max(crop_px - height_px, 0), max(crop_px - width_px, 0)
    if missing_y or missing_x:
        pads = [(n // 2, (n + 1) // 2) for n in (missing_y, missing_x)]
        pixels = np.pad(pixels, [*pads, (0, 0)])
        height_px, width_px = pixels.shape[:2]
    # round() rounds half to even here, and torchvision does the same
    top, left = round((height_px - crop_px) / 2.0), round((width_px - crop_px) / 2.0)
    return np.ascontiguousarray(pixels[top : top + crop_px, left : left + crop_px])


def _opened(data: bytes, limits: ImageLimits) -> ImageFile:
    claimed = sniff_format(data[:SNIFF_BYTES])
    if claimed is None:
        raise ImageUnreadable("the bytes start like no image format")
    if claimed not in _OPENERS:
        raise ImageFormatUnsupported(claimed)
    image = _OPENERS[claimed](BytesIO(data))
    if min(image.size) < 1:
        raise ImageUnreadable("it declares no pixels")
    width_px, height_px = image.size
    if width_px * height_px > limits.max_pixels or max(image.size) > limits.max_side_px:
        raise ImageTooLarge(width_px, height_px, limits.max_pixels, limits.max_side_px)
    _check_aspect(width_px, height_px, limits.max_aspect)
    return image


def _check_aspect(width_px: int, height_px: int, max_aspect: int) -> None:
    if max(width_px, height_px) > max_aspect * min(width_px, height_px):
        raise ImageAspectExtreme(width_px, height_px, max_aspect)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none or the EXIF data is malformed.

    Asked after `load`, because Pillow's TIFF reader applies and removes it there.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a malformed tag must not cost the picture
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _scaled_16_bit(image)
    if image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and image.has_transparency_data):
        return _on_white(image)
    if image.mode not in _PLAIN_MODES:
        raise ImageModeUnsupported(image.mode)
    return image.convert("RGB")


def _scaled_16_bit(image: Image.Image) -> Image.Image:
    """Map 0..65535 to 0..255: `convert` would clip instead and turn photographs white."""
    values = np.asarray(image).astype(np.uint32)
    if isinstance(image, TiffImageFile):
        values = _black_is_zero(image, values)
    scaled = ((values + 128) // 257).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _black_is_zero(image: TiffImageFile, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Turn a TIFF's 16-bit values the way that Pillow does for 8 bits only.

    Raises:
        ImageModeUnsupported: They have 12 bits, which Pillow does not spread over 16.
    """
    bits = image.tag_v2.get(_BITS_TAG)
    if bits is None or bits[0] != 16:
        raise ImageModeUnsupported("I;12")
    inverted = image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    return 65535 - values if inverted else values


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has for it
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _unreadable(error: Exception) -> ImageUnreadable:
    """Return our error with what the decoder said, if that is a sentence and no internals."""
    said = str(error).rstrip(".")
    return ImageUnreadable(said if _SENTENCE.fullmatch(said) else "the decoder refuses it")
