"""How fast each engine makes a frozen pass, and what the cache of features saves.

    python benchmarks/features.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER

In one run on one machine, engines in turns, the shortest of three rounds each: eager channels-last,
BatchNorm folded, Inductor with freezing (needs a C++ compiler; the product has none of it), and
ONNX Runtime; the time to build the latter two; and reading the same features
from the cache, with and without a few new images. With `--device cuda` the engines of torch, and
in bfloat16, compiled, and as a CUDA graph; the product uses bfloat16 of these.

Prints the ratios to the eager network and writes them as JSON.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import decode  # noqa: E402 - after the path
import head_vs_tutorial as tutorial  # noqa: E402
import torch  # noqa: E402
from cuda_candidates import frozen_passes  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._inductor import config as inductor  # noqa: E402

from jobs.training.device import set_up  # noqa: E402
from models_cache.backbones import build_backbone  # noqa: E402
from models_cache.catalogue import Catalogue  # noqa: E402
from models_cache.classifiers import golden_images  # noqa: E402
from models_cache.devices import choose_device  # noqa: E402
from models_cache.durable import sha256_of_bytes  # noqa: E402
from models_cache.engine_store import EngineKey, EngineStore, build_engine  # noqa: E402
from models_cache.engines import (  # noqa: E402
    EAGER,
    Engine,
    choose_engine,
    extract_features,
)
from models_cache.feature_cache import FeatureCache, FeatureKey  # noqa: E402
from models_cache.features import freeze, normalised  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402

_BATCH = 32
_NEW_IMAGES = 3


def main() -> None:
    """Run all engines, print the ratios, write the JSON."""
    options = tutorial.parse_options()
    device = choose_device(options.device)
    numerics = set_up(device, options.threads)
    catalogue = Catalogue.load(extra_files=[options.weights / "catalog.json"])
    candidates = catalogue.candidates(options.architecture, "DEFAULT", have=lambda _info: False)
    info = next(info for info in candidates if (options.weights / info.file).is_file())
    path = options.weights / info.file
    module = build_backbone(options.architecture, weights_path=path, has_head=info.has_head)
    backbone = freeze(module, device)
    crops = decode.center_crops(options.archive, info.preprocessing)
    report: dict[str, Any] = {
        "machine": tutorial.machine(options),
        "product_dtype": numerics.dtype,
        "architecture": options.architecture,
        "images": len(crops),
        "threads": options.threads,
        "batch": _BATCH,
    }
    with tempfile.TemporaryDirectory() as folder:
        engines = [Engine.of(EAGER, backbone)]
        probe = torch.from_numpy(golden_images(info.preprocessing.crop_px)).to(device)
        engines.append(choose_engine(backbone, probe, info.preprocessing))
        if device.type == "cuda":
            example = normalised(crops[:_BATCH].to(device), info.preprocessing)
            engines.extend(frozen_passes(engines[-1], example))
        else:
            engines.append(_compiled(backbone, crops[:_BATCH], info.preprocessing, report))
            engines.extend(_built(Path(folder), backbone, info.preprocessing, report))
        passes = {
            engine.name: lambda engine=engine: extract_features(  # type: ignore[misc]
                engine, crops.split(_BATCH), info.preprocessing, _BATCH
            )
            for engine in engines
        }
        report["seconds"] = decode.shortest(passes)
        report["differences_to_eager"] = _differences(engines, crops[:_BATCH], info.preprocessing)
        report["seconds"] |= _cached(Path(folder), engines[-1], crops, info.preprocessing)
    eager_seconds = report["seconds"][EAGER]
    report["ratios_to_eager"] = {
        name: round(seconds / eager_seconds, 4) for name, seconds in report["seconds"].items()
    }
    decode.tell(report, options)


def _differences(
    engines: list[Engine], crops: Tensor, preprocessing: Preprocessing
) -> dict[str, float]:
    """Return the largest difference of each engine's features to eager ones, of the largest one."""
    expected, *found = (engine.features(crops, preprocessing) for engine in engines)
    largest = expected.abs().max()
    return {
        engine.name: round(float((features - expected).abs().max() / largest), 6)
        for engine, features in zip(engines[1:], found, strict=True)
    }


def _compiled(
    backbone: torch.nn.Module, crops: Tensor, preprocessing: Preprocessing, report: dict[str, Any]
) -> Engine:
    """Return what Inductor makes of the network for batches of one size."""
    inductor.freezing = True
    compiled: torch.nn.Module = torch.compile(copy.deepcopy(backbone))  # type: ignore[assignment]
    engine = replace(Engine.of(EAGER, backbone), name="Inductor, frozen", forward=compiled)
    started = time.monotonic()
    with torch.inference_mode():
        engine.features(crops, preprocessing)
    report["compile_seconds"] = round(time.monotonic() - started, 3)
    return engine


def _built(
    folder: Path, backbone: torch.nn.Module, preprocessing: Preprocessing, report: dict[str, Any]
) -> Iterator[Engine]:
    store, key = EngineStore(folder / "engines"), EngineKey("benchmark", "0" * 64, "0" * 64)
    started = time.monotonic()
    record, network = build_engine(backbone, preprocessing)
    report["build_seconds"] = round(time.monotonic() - started, 3)
    report["verdict"] = record.reason
    store.keep(key, record, network)
    engine = store.load(key)
    if engine is not None:
        yield engine


def _cached(
    folder: Path, engine: Engine, crops: Tensor, preprocessing: Preprocessing
) -> dict[str, float]:
    """Time reading all features, and all but a few that are computed."""
    cache = FeatureCache(folder / "features")
    names = [sha256_of_bytes(str(position).encode()) for position in range(len(crops))]
    known = crops[:-_NEW_IMAGES]
    found = extract_features(engine, known.split(_BATCH), preprocessing, _BATCH)
    key = FeatureKey("benchmark", "0" * 64, preprocessing.digest, {})
    cache.write(key, names[:-_NEW_IMAGES], found)

    def read() -> None:
        assert len(cache.read(key, names[:-_NEW_IMAGES])) == len(known)

    def read_and_embed() -> None:
        read()
        extract_features(engine, [crops[-_NEW_IMAGES:]], preprocessing, _BATCH)

    return decode.shortest({"all cached": read, f"{_NEW_IMAGES} new images": read_and_embed})


if __name__ == "__main__":
    main()
