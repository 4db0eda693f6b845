"""B of the catalogue: images. Each is uploaded and predicted; both have to say the same."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from tests.abuse.case import OK, Build, Case, Outcome, Picture
from tests.images import draw_shape, encode, encode_image, tiff_bytes

_UNREADABLE = "unreadable-image"
_FORMAT = "unsupported-format"
_MODE = "unsupported-mode"
_LARGE = "image-too-large"
_ASPECT = "image-aspect"


def _case(number: str, what: str, build: Build, code: str = OK, name: str = "picture") -> Case:
    status = 200 if code == OK else 422
    return Case(number, what, Picture(build, name), Outcome(status, code), 30.0)


def _png(width_px: int, height_px: int, rows: bytes = b"", bits: int = 8, kind: int = 0) -> bytes:
    """Return a PNG whose header says what it likes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">2I5B", width_px, height_px, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def _with_chunk(name: bytes, data: bytes) -> bytes:
    png = encode(draw_shape("disc", 11), "PNG")
    checked = name + data
    chunk = struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))
    return png[:33] + chunk + png[33:]


def _disc(seed: int) -> Image.Image:
    return Image.fromarray(draw_shape("disc", seed))


def _jpeg(seed: int = 0, **options: object) -> bytes:
    return encode_image(_disc(seed), "JPEG", **options)


def _cut_jpeg(percent: int) -> Build:
    def build() -> bytes:
        data = encode(draw_shape("disc", 12, (96, 80)), "JPEG")
        return data[: len(data) * percent // 100]

    return build


def _flipped() -> bytes:
    data = bytearray(encode(draw_shape("disc", 13, (96, 80)), "JPEG"))
    data[len(data) // 2] ^= 4
    return bytes(data)


def _exif(orientation: int) -> Build:
    def build() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return _jpeg(20 + orientation, exif=exif)

    return build


def _located() -> bytes:
    exif = Image.Exif()
    exif[0x013B] = "A. Author"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    return _jpeg(30, exif=exif)


def _floats(fill: float) -> Build:
    return lambda: encode(np.full((20, 20), fill, np.float32), "TIFF")


def _frames(format_name: str, count: int) -> Build:
    def build() -> bytes:
        frames = [_disc(40 + number) for number in range(count)]
        options: dict[str, object] = {"save_all": True, "append_images": frames[1:]}
        return encode_image(frames[0], format_name, **options)

    return build


def _endless_gif() -> bytes:
    """Return a GIF of 100,000 frames, of which all but the first are the same 20 bytes."""
    first = encode_image(_disc(50).quantize(16), "GIF")
    frame = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return first[:-1] + frame * 100_000 + b";"


def _looped_tiff() -> bytes:
    data = bytearray(encode(draw_shape("disc", 51), "TIFF"))
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, directory)[0]
    struct.pack_into("<I", data, directory + 2 + 12 * entries, directory)
    return bytes(data)


def _icc(profile: bytes) -> Build:
    return lambda: _jpeg(52, icc_profile=profile)


def _real_icc() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return _jpeg(53, icc_profile=profile.tobytes())


def _text_bomb() -> bytes:
    return _with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20), 9))


def _transparent() -> bytes:
    pixels = np.dstack([draw_shape("disc", 54), np.zeros((40, 48), np.uint8)])
    return encode(pixels, "PNG")


def _with_info() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 5000)
    return encode(draw_shape("disc", 56), "PNG", pnginfo=info)


def _heif(brand: bytes) -> Build:
    return lambda: struct.pack(">I", 24) + b"ftyp" + brand + bytes(12) + bytes(200)


_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
_ENTITIES = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaa">'
    + b"".join(b'<!ENTITY %c "&%c;&%c;">' % (98 + i, 97 + i, 97 + i) for i in range(20))
    + b"]><l>&u;</l>"
)

_HEADERS = (
    _case("B01-huge", "50,000 x 50,000 declared", lambda: _png(50_000, 50_000), _LARGE),
    _case("B01-line", "2^31-1 x 1 declared", lambda: _png(2**31 - 1, 1), _LARGE),
    _case("B01-warned", "13,000 x 8,000 declared", lambda: _png(13_000, 8_000), _LARGE),
    _case(
        "B01-valid",
        "81 megapixels in 10 KB",
        lambda: _png(9_000, 9_000, bytes(9_000 * 1126), bits=1),
        _LARGE,
    ),
    _case("B01-side", "a side of 16,385", lambda: _png(16_385, 300), _LARGE),
    _case(
        "B01-gif",
        "65,535 x 65,535 GIF",
        lambda: (
            b"GIF89a"
            + b"\xff" * 4
            + bytes(3)
            + b"\x2c"
            + bytes(4)
            + b"\xff" * 4
            + b"\0\2\2\x44\1\0;"
        ),
        _LARGE,
    ),
    _case("B01-nothing", "0 x 0 declared", lambda: _png(0, 0), _UNREADABLE),
    _case("B09-thin", "65 x 1", lambda: encode(np.zeros((1, 65, 3), np.uint8), "PNG"), _ASPECT),
    _case("B09-tall", "1 x 65", lambda: encode(np.zeros((65, 1, 3), np.uint8), "PNG"), _ASPECT),
    _case(
        "B09-wide", "16,000 x 2", lambda: encode(np.zeros((2, 16_000), np.uint8), "PNG"), _ASPECT
    ),
    _case("B09-one", "one pixel", lambda: encode(np.full((1, 1, 3), 77, np.uint8), "PNG")),
)

_DAMAGED = (
    *(
        _case(f"B02-cut-{percent}", f"JPEG cut at {percent} %", _cut_jpeg(percent), _UNREADABLE)
        for percent in range(5, 100, 10)
    ),
    _case("B02-flip", "one bit of a JPEG's scan", _flipped),
    _case("B02-start", "three bytes", lambda: b"\xff\xd8\xff", _UNREADABLE),
    _case("B02-png", "PNG without data", lambda: _png(20, 20), _UNREADABLE),
    _case("B11-text", "100 MB of text in 100 KB", _text_bomb, _UNREADABLE),
    _case("B12-loop", "TIFF whose directories form a loop", _looped_tiff),
)

_MODES = (
    _case("B03-cmyk", "CMYK", lambda: encode_image(_disc(60).convert("CMYK"), "JPEG")),
    _case(
        "B04-gray",
        "16-bit gray PNG",
        lambda: encode(np.arange(3200, dtype=np.uint16).reshape(50, 64) * 20, "PNG"),
    ),
    _case(
        "B04-tiff",
        "16-bit gray TIFF",
        lambda: encode(np.arange(3200, dtype=np.uint16).reshape(64, 50) * 20, "TIFF"),
    ),
    _case(
        "B04-int", "32-bit TIFF", lambda: encode(np.full((20, 20), 70_000, np.int32), "TIFF"), _MODE
    ),
    _case("B04-12", "12-bit TIFF", lambda: tiff_bytes(bytes(30), 20, (12,), 1), _MODE),
    _case("B05-float", "float TIFF", _floats(0.5), _MODE),
    _case("B05-nan", "NaN TIFF", _floats(float("nan")), _MODE),
    _case("B05-inf", "infinite TIFF", _floats(float("inf")), _MODE),
    _case("B05-1e38", "1e38 TIFF", _floats(1e38), _MODE),
    _case(
        "B06-palette",
        "palette with transparency",
        lambda: encode_image(_disc(61).quantize(16), "PNG", transparency=3),
    ),
    _case(
        "B06-bytes",
        "palette with many transparencies",
        lambda: encode_image(_disc(62).quantize(16), "PNG", transparency=bytes(range(16))),
    ),
    _case("B06-la", "gray with alpha", lambda: encode_image(_disc(63).convert("LA"), "PNG")),
    _case("B06-hidden", "nothing but transparency", _transparent),
    _case("B06-bilevel", "one bit", lambda: encode_image(_disc(64).convert("1"), "PNG")),
    _case("B11-icc", "a corrupt colour profile", _icc(b"x" * 3000)),
    _case("B11-large-icc", "a colour profile of 4 MB", _icc(bytes(4 << 20))),
    _case("B11-real-icc", "a colour profile", _real_icc),
)

_META = (
    *(_case(f"B07-{n}", f"EXIF orientation {n}", _exif(n)) for n in range(1, 9)),
    _case("B07-bad", "malformed EXIF", lambda: _jpeg(29, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1")),
    _case("B07-nine", "EXIF orientation 9", _exif(9)),
    _case("B14-place", "a place and an author", _located),
    _case("B14-text", "a comment", _with_info),
    _case("B08-gif", "30 GIF frames", _frames("GIF", 30)),
    _case("B08-endless", "100,000 GIF frames", _endless_gif),
    _case("B08-webp", "10 WebP frames", _frames("WEBP", 10)),
    _case("B08-apng", "10 PNG frames", _frames("PNG", 10)),
    _case("B08-pages", "10 TIFF pages", _frames("TIFF", 10)),
)

_OTHERS = (
    _case("B10-svg", "SVG", lambda: _SVG, _UNREADABLE),
    _case("B10-html", "HTML", lambda: b"<html><img src=x onerror=alert(1)>", _UNREADABLE),
    _case("B10-entities", "XML entities", lambda: _ENTITIES, _UNREADABLE),
    _case("B10-pdf", "PDF", lambda: b"%PDF-1.7\n", _UNREADABLE),
    _case(
        "B10-ps",
        "PostScript",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        _UNREADABLE,
    ),
    _case("B10-eps", "binary EPS", lambda: b"\xc5\xd0\xd3\xc6" + bytes(60), _UNREADABLE),
    _case("B10-ppm", "PPM", lambda: b"P6 2 2 255 " + bytes(12), _UNREADABLE),
    _case(
        "B10-text", "text that begins with BM", lambda: b"BMW is a car maker in Munich", _UNREADABLE
    ),
    _case("B12-jp2", "JPEG 2000", lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), _FORMAT),
    _case("B12-avif", "AVIF", _heif(b"avif"), _FORMAT),
    _case("B12-heic", "HEIC", _heif(b"heic"), _FORMAT),
    _case("B12-jxl", "JPEG XL", lambda: b"\xff\x0a" + bytes(99), _FORMAT),
    _case("B12-psd", "PSD", lambda: b"8BPS\0\1" + bytes(99), _FORMAT),
    _case(
        "B12-jpeg-tiff",
        "JPEG in TIFF",
        lambda: encode(draw_shape("disc", 70), "TIFF", compression="jpeg"),
    ),
    _case("B15-capitals", "named .JPG", lambda: _jpeg(71), name="A.JPG"),
    _case("B15-wrong", "a JPEG named .png", lambda: _jpeg(72), name="b.png"),
    _case("B15-none", "no extension", lambda: _jpeg(73), name="c"),
    _case("B15-exe", "named .jpeg.exe", lambda: _jpeg(74), name="d.jpeg.exe"),
)

CASES = (*_HEADERS, *_DAMAGED, *_MODES, *_META, *_OTHERS)


def open_quietly(data: bytes) -> Image.Image:
    """Open an image that a service gave back."""
    return Image.open(io.BytesIO(data))
