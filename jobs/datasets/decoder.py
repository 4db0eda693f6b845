"""A process that decodes one uploaded image after the other: `python -m jobs.datasets.decoder`.

Image decoders are C code and the images are strangers': what goes wrong costs this process and one
image. It can write nothing but its answers, and its memory and processor time are bounded.

Frames on standard input and output: `<I` length and JSON, then, for a decoded image, its pixels.
"""

from __future__ import annotations

import json
import math
import resource
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jobs.datasets.appearance import appearance_of
from jobs.datasets.confine import allow_cpu, limit_memory
from jobs.processes import die_with_parent
from models_cache import faults
from models_cache.decode import ImageLimits, Pixels, decode_rgb, read_header, resize_shorter_side
from models_cache.errors import ImageError
from models_cache.preprocessing import Interpolation

LENGTH = struct.Struct("<I")
_CHANNELS = 3
_COUNTED_PIXELS = 1_000_000  # of a GIF, at least, when its colours are counted
FAULT_POINT = "decoder.image"  # `decoder.image:<index>` is reached before each image


@dataclass(frozen=True)
class DecoderSpec:
    """What a decoder is told at its start, as JSON in its one argument.

    Args:
        parent_pid: Who starts it; it dies with that process.
        resize_px: Shorter side of the pixels it answers with.
        interpolation: Kernel of the resize.
        max_pixels: See `ImageLimits`.
        max_side_px: See `ImageLimits`.
        max_aspect: See `ImageLimits`.
        cpu_seconds: Processor time for one image.
        memory_bytes: Address space above what it has at its start.
        faults: Plan of named points to fail at, for tests.
        faults_folder: Where fired points are marked.
    """

    parent_pid: int
    resize_px: int
    interpolation: Interpolation
    max_pixels: int
    max_side_px: int
    max_aspect: int
    cpu_seconds: int
    memory_bytes: int
    faults: str
    faults_folder: str

    def as_argument(self) -> str:
        """Return the form that the command line carries."""
        return json.dumps(asdict(self))


def main(argument: str) -> None:
    """Answer requests until standard input ends."""
    spec = DecoderSpec(**json.loads(argument))
    die_with_parent(spec.parent_pid)
    faults.arm(spec.faults, Path(spec.faults_folder))
    limit_memory(spec.memory_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := _read_request(requests)) is not None:
        allow_cpu(spec.cpu_seconds)
        faults.reach(f"{FAULT_POINT}:{request['index']}")
        answer, pixels = _answer(Path(request["path"]), spec)
        data = json.dumps(answer).encode()
        answers.write(LENGTH.pack(len(data)) + data)
        if pixels is not None:
            answers.write(np.ascontiguousarray(pixels).data)
        answers.flush()


def _read_request(file: BinaryIO) -> dict[str, Any] | None:
    """Read one JSON frame; None when the other side is gone."""
    header = file.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    value: dict[str, Any] = json.loads(file.read(LENGTH.unpack(header)[0]))
    return value


def _answer(path: Path, spec: DecoderSpec) -> tuple[dict[str, Any], Pixels | None]:
    limits = ImageLimits(spec.max_pixels, spec.max_side_px, spec.max_aspect)
    try:
        data = path.read_bytes()
        header = read_header(data, limits)
        pixels = decode_rgb(data, limits)
        facts: dict[str, Any] = {
            "format": header.format,
            "animated": header.animated,
            "mode": header.mode,
            "width_px": pixels.shape[1],
            "height_px": pixels.shape[0],
        }
        if header.format == "GIF":
            facts["colours"], facts["largest_colour_fraction"] = _colours(pixels)
        resized = resize_shorter_side(pixels, spec.resize_px, spec.interpolation)
        facts["appearance"] = appearance_of(resized).as_json()
    except ImageError as error:
        return {"code": error.code, "message": str(error)}, None
    except MemoryError:
        message = "decoding it takes more memory than is allowed"
        return {"code": "decode-memory", "message": message}, None
    return {**facts, "shape": list(resized.shape[:2])}, resized


def _colours(pixels: Pixels) -> tuple[int, float]:
    """Return how many colours there are, and the share of pixels that the commonest one has.

    Of a large image every n-th pixel is looked at, which says enough and bounds the memory.
    """
    step = max(1, math.isqrt(pixels.size // _CHANNELS // _COUNTED_PIXELS))
    sample = pixels[::step, ::step].astype(np.uint32)
    packed = sample @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    counts = np.unique(packed, return_counts=True)[1]
    return len(counts), float(counts.max() / counts.sum())


if __name__ == "__main__":
    main(sys.argv[1])
