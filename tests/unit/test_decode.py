from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models_cache.decode import (
    ImageLimits,
    center_crop,
    decode_rgb,
    read_header,
    resize_shorter_side,
    sniff_format,
)
from models_cache.errors import (
    ImageAspectExtreme,
    ImageError,
    ImageFormatUnsupported,
    ImageModeUnsupported,
    ImageTooLarge,
    ImageUnreadable,
)
from models_cache.preprocessing import Interpolation
from tests.images import draw_shape, encode, encode_image, tiff_bytes

GRADIENT = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
EXPECTED_GRAY = np.round(GRADIENT / 257).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and holds no pixels."""
    data = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + data))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + data + crc + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_exactly(format_name: str) -> None:
    pixels = draw_shape("disc")
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encode(pixels, format_name, **options)
    np.testing.assert_array_equal(decode_rgb(data), pixels)
    header = read_header(data)
    assert (header.width_px, header.height_px, header.format) == (48, 40, format_name)


@pytest.mark.parametrize("format_name", ["JPEG", "GIF"])
def test_lossy_formats_come_back_nearly(format_name: str) -> None:
    pixels = draw_shape("disc")
    difference = decode_rgb(encode(pixels, format_name)).astype(int) - pixels
    assert np.abs(difference).mean() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_every_exif_orientation_gives_the_same_upright_pixels(
    orientation: int, format_name: str
) -> None:
    pixels = draw_shape("cross")
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.ascontiguousarray(stored[orientation]), format_name, exif=exif)
    np.testing.assert_array_equal(decode_rgb(data), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
def test_malformed_exif_is_ignored() -> None:
    data = encode(draw_shape("disc"), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff\x01")
    assert decode_rgb(data).shape == (40, 48, 3)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(format_name: str) -> None:
    pixels = decode_rgb(encode(GRADIENT, format_name))
    np.testing.assert_array_equal(pixels[..., 0], EXPECTED_GRAY)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def sixteen_bit_png(values: NDArray[np.uint16], transparent: bytes = b"") -> bytes:
    """Return a PNG of uint16 `[H, W]` or `[H, W, 3]`, one colour of it transparent."""
    height, width = values.shape[:2]
    raw = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2").reshape(height, -1))
    colour = 0 if values.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", transparent))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + crc
    return data


def test_sixteen_bit_colour_png_is_scaled_within_one_step() -> None:
    data = sixteen_bit_png(np.stack([GRADIENT] * 3, -1))
    difference = decode_rgb(data)[..., 1].astype(int) - EXPECTED_GRAY
    assert np.abs(difference).max() <= 1


def test_the_transparent_gray_of_a_sixteen_bit_png_is_put_on_white() -> None:
    values = np.array([[300, 301, 65535]], np.uint16)  # the first two are one gray in 8 bits
    pixels = decode_rgb(sixteen_bit_png(values, transparent=struct.pack(">H", 300)))
    assert pixels[0].tolist() == [[255] * 3, [1] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("bits", "row"),
    [(8, struct.pack("<3B", 0, 255, 128)), (16, struct.pack("<3H", 0, 65535, 32768))],
)
@pytest.mark.parametrize(("photometric", "expected"), [(0, [255, 0, 127]), (1, [0, 255, 128])])
def test_a_tiff_whose_zero_is_white_is_inverted(
    bits: int, row: bytes, photometric: int, expected: list[int]
) -> None:
    pixels = decode_rgb(tiff_bytes(row, 3, (bits,), photometric))
    assert pixels[0, :, 0].tolist() == expected


def test_twelve_bit_pixels_are_refused_and_not_read_as_sixteen() -> None:
    row = (0x000FFF800000).to_bytes(6, "big")  # 0, 4095, 2048, 0
    with pytest.raises(ImageModeUnsupported) as caught:
        decode_rgb(tiff_bytes(row, 4, (12,), 1))
    assert caught.value.mode == "I;12"


@pytest.mark.parametrize(("extra_sample", "expected"), [(1, 227), (2, 177)])
def test_gray_tiffs_with_either_kind_of_alpha_are_put_on_white(
    extra_sample: int, expected: int
) -> None:
    row = bytes([0, 0, 100, 128, 30, 255])
    pixels = decode_rgb(tiff_bytes(row, 3, (8, 8), 1, extra_sample))
    assert pixels[0, :, 0].tolist() == [255, expected, 30]


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.linspace(0, 1, 48 * 40, dtype=np.float32).reshape(40, 48), "F"),
        (np.full((40, 48), np.nan, dtype=np.float32), "F"),
        (np.arange(48 * 40, dtype=np.int32).reshape(40, 48), "I"),
    ],
)
def test_floating_point_and_signed_pixels_are_refused(
    pixels: NDArray[np.float32], mode: str
) -> None:
    with pytest.raises(ImageModeUnsupported) as caught:
        decode_rgb(encode(pixels, "TIFF"))
    assert caught.value.mode == mode


def test_cmyk_is_converted_and_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 20)).convert("CMYK")
    pixels = decode_rgb(encode_image(red, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (200, 30, 20)).max() <= 8


def test_transparency_is_put_on_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (10, 200, 30, 255)
    rgba[:, :4] = (255, 0, 0, 0)  # red that nobody can see
    pixels = decode_rgb(encode(rgba, "PNG"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == (10, 200, 30)).all()


def test_gray_with_alpha_and_palettes_with_transparency_are_put_on_white() -> None:
    gray = np.zeros((4, 4, 2), np.uint8)
    assert (decode_rgb(encode(gray, "PNG")) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 7, 7, 7])
    assert (decode_rgb(encode_image(palette, "PNG", transparency=bytes([0, 255]))) == 255).all()
    assert (decode_rgb(encode_image(palette, "GIF", transparency=0)) == 255).all()


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_taken(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encode_image(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    assert (decode_rgb(data)[0, 0] == (250, 0, 0)).all()
    assert read_header(data).animated


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("percent", range(0, 100, 10))
def test_truncated_images_are_unreadable(format_name: str, percent: int) -> None:
    data = encode(draw_shape("disc", size=(96, 80)), format_name)
    with pytest.raises(ImageUnreadable):
        decode_rgb(data[: len(data) * percent // 100])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html><script>alert(1)</script></html>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + bytes(40),
        b"GIF89a",
        b"BM" + bytes(60),
    ],
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    with pytest.raises(ImageUnreadable):
        decode_rgb(data)


def test_a_text_that_begins_with_bm_is_no_image() -> None:
    assert sniff_format(b"BMW 320\nAudi A4\nOpel Kadett\n") is None
    assert sniff_format(b"BM") is None
    assert sniff_format(encode(draw_shape("disc"), "BMP")) == "BMP"


@pytest.mark.parametrize("header_bytes", [12, 40, 52, 56, 64, 108, 124])
def test_every_known_header_of_a_bmp_is_recognised(header_bytes: int) -> None:
    assert sniff_format(b"BM" + bytes(12) + struct.pack("<I", header_bytes)) == "BMP"


@pytest.mark.parametrize(
    ("start", "format_name"),
    [
        (b"\x00\x00\x00\x18ftypheic", "HEIC"),
        (b"\x00\x00\x00\x18ftypavif", "AVIF"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\x00\x01", "PSD"),
    ],
)
def test_formats_outside_the_list_are_named(start: bytes, format_name: str) -> None:
    with pytest.raises(ImageFormatUnsupported) as caught:
        decode_rgb(start + bytes(64))
    assert caught.value.format == format_name


@pytest.mark.parametrize(
    ("size", "error"),
    [
        ((50_000, 50_000), ImageTooLarge),
        ((13_000, 8_000), ImageTooLarge),
        ((2**31 - 1, 1), ImageTooLarge),
        ((16_385, 600), ImageTooLarge),
        ((16_000, 1), ImageAspectExtreme),
        ((1, 65), ImageAspectExtreme),
    ],
)
def test_size_is_refused_from_the_header(size: tuple[int, int], error: type[ImageError]) -> None:
    with pytest.raises(error) as caught:
        decode_rgb(png_header(*size))
    assert (caught.value.facts["width_px"], caught.value.facts["height_px"]) == size


def test_limits_are_the_callers() -> None:
    data = encode(draw_shape("disc"), "PNG")
    with pytest.raises(ImageTooLarge):
        decode_rgb(data, ImageLimits(max_pixels=48 * 40 - 1))
    assert decode_rgb(data, ImageLimits(max_pixels=48 * 40)).size


def test_a_huge_compressed_text_is_unreadable() -> None:
    text = zlib.compress(bytes(80 << 20), 9)
    body = b"Comment\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = encode(draw_shape("disc"), "PNG")
    with pytest.raises(ImageUnreadable):
        decode_rgb(data[:33] + chunk + data[33:])


def test_one_pixel_is_accepted_and_resized() -> None:
    pixels = decode_rgb(encode(np.full((1, 1, 3), 77, np.uint8), "PNG"))
    assert (resize_shorter_side(pixels, 8, "bilinear") == 77).all()


@settings(max_examples=150, deadline=None)
@given(
    format_name=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 1 << 16),
)
def test_damaged_images_raise_only_image_errors(
    format_name: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(encode(draw_shape("cross", size=(24, 20)), format_name))
    for position, value in edits:
        data[position % len(data)] = value
    with suppress(ImageError):
        decode_rgb(bytes(data[: len(data) - cut % (len(data) // 8)]))


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (333, 500), (500, 333), (31, 31), (256, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_resize_is_torchvisions(size: tuple[int, int], interpolation: Interpolation) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = draw_shape("stripes", size=size)
    mode = transforms.InterpolationMode(interpolation)
    expected = np.asarray(transforms.Resize(64, interpolation=mode)(Image.fromarray(pixels)))
    np.testing.assert_array_equal(resize_shorter_side(pixels, 64, interpolation), expected)


@pytest.mark.parametrize("size", [(333, 500), (500, 333), (300, 257)])
def test_resize_is_the_tensor_one_within_one_step(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms.v2")
    pixels = draw_shape("disc", size=size)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = transforms.Resize(256, antialias=True)(tensor).permute(1, 2, 0).numpy()
    difference = resize_shorter_side(pixels, 256, "bilinear").astype(int) - expected
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("size", [(48, 40), (41, 33), (20, 50), (9, 9), (64, 63), (33, 32)])
@pytest.mark.parametrize("crop_px", [16, 17, 32, 33])
def test_crop_is_torchvisions(size: tuple[int, int], crop_px: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = draw_shape("cross", size=size)
    expected = np.asarray(transforms.CenterCrop(crop_px)(Image.fromarray(pixels)))
    np.testing.assert_array_equal(center_crop(pixels, crop_px), expected)


def test_resize_refuses_what_would_explode() -> None:
    with pytest.raises(ImageAspectExtreme):
        resize_shorter_side(np.zeros((1, 30_000, 3), np.uint8), 256, "bilinear")


def test_a_jpeg_with_several_pictures_gives_the_first() -> None:
    first, second = (Image.fromarray(draw_shape(s)) for s in ("disc", "square"))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    header = read_header(buffer.getvalue())
    assert (header.width_px, header.height_px, header.format) == (48, 40, "JPEG")
    assert decode_rgb(buffer.getvalue()).shape == (40, 48, 3)
