"""How long photographs take to become pixels, and what decoding them once saves.

    python benchmarks/decode.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER

In one run on one machine: decoding and resizing every JPEG with one thread and with all, against
opening the packed pixels (checksum included) and cropping every image from them.

Prints the ratios to one thread and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import head_vs_tutorial as tutorial  # noqa: E402 - after the path
import numpy as np  # noqa: E402
import torch  # noqa: E402
from cuda_candidates import decoded_on_device  # noqa: E402
from torch import Tensor  # noqa: E402

from models_cache.decode import (  # noqa: E402
    ImageLimits,
    Pixels,
    center_crop,
    decode_rgb,
    resize_shorter_side,
)
from models_cache.pixels import PixelCache, PixelKey  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402

_ROUNDS = 3


def main() -> None:
    """Decode in every way, print the ratios, write the JSON."""
    options = tutorial.parse_options()
    files, facts = photographs(options.archive), Preprocessing()
    with tempfile.TemporaryDirectory() as folder:
        cache, key = PixelCache(Path(folder)), PixelKey("0" * 64, facts.resize_px, "bilinear")
        cache.write(key, _resized(files, facts, options.threads))

        def packed() -> None:
            pixels = cache.open(key)
            assert pixels is not None
            for position in range(len(pixels)):
                center_crop(pixels.image(position), facts.crop_px).copy()

        ways: dict[str, Callable[[], object]] = {
            "1 thread": lambda: _resized(files, facts, 1),
            f"{options.threads} threads": lambda: _resized(files, facts, options.threads),
            "packed": packed,
        }
        device = torch.device(options.device)
        if device.type == "cuda":
            ways["nvJPEG"] = lambda: decoded_on_device(files, facts.resize_px, device)
        seconds = shortest(ways)
    report = {
        "machine": tutorial.machine(options),
        "images": len(files),
        "megabytes": round(sum(map(len, files)) / 1e6, 1),
        "seconds": seconds,
        "ratios_to_one_thread": {
            name: round(value / seconds["1 thread"], 4) for name, value in seconds.items()
        },
    }
    tell(report, options)


def photographs(archive: Path) -> list[bytes]:
    """Return the JPEG files of an archive of ours."""
    with zipfile.ZipFile(archive) as opened:
        return [opened.read(name) for name in opened.namelist() if name.endswith(".jpg")]


def center_crops(archive: Path, facts: Preprocessing) -> Tensor:
    """Return what a network is shown of an archive's photographs, uint8 `[N, crop, crop, 3]`."""
    resized = _resized(photographs(archive), facts, 2)
    return torch.from_numpy(np.stack([center_crop(image, facts.crop_px) for image in resized]))


def shortest(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest time of each run over some rounds, in seconds; in turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            started = time.monotonic()
            run()
            found[name] = min(found[name], round(time.monotonic() - started, 4))
    return found


def tell(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print a report, and write it where the command line says."""
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _resized(files: list[bytes], facts: Preprocessing, threads: int) -> list[Pixels]:
    def one(data: bytes) -> Pixels:
        upright = decode_rgb(data, ImageLimits())
        return resize_shorter_side(upright, facts.resize_px, facts.interpolation)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, files))


if __name__ == "__main__":
    main()
