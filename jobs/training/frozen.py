"""Phase `features`: which engine makes the frozen pass, and which images still need it.

The choice never depends on timing. An engine of which most features are cached comes first, so that
a new engine does not throw a cache away; else the fastest verified one that is ready. Later
attempts of a job stay with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.datasets.loading import LoadedDataset
from jobs.training.place import Place
from jobs.training.sources import Backbone
from jobs.training.views import pixels_of_view
from models_cache.classifiers import golden_images
from models_cache.durable import canonical_json, write_bytes
from models_cache.engine_store import EngineKey, engine_name, engine_spec
from models_cache.engines import EAGER, FOLDED, Engine, choose_engine, extract_features
from models_cache.feature_cache import CENTER_CROP, FeatureKey
from models_cache.preprocessing import Preprocessing

_RECORD = "engine.json"  # in the run folder: what the first attempt chose


@dataclass(frozen=True)
class FrozenPass:
    """How the images of a job become features.

    Args:
        engine_name: Part of the numerics identity.
        engine: What runs the pass; None where every image's features are cached.
        cached: Rows by SHA-256 of the image, by view: those that were there.
    """

    engine_name: str
    engine: Engine | None
    cached: dict[str, dict[str, Tensor]]


def no_pass(engine_name: str = EAGER) -> FrozenPass:
    """Return the pass of an attempt that makes none: its network learns from the start."""
    return FrozenPass(engine_name, None, {})


def choose_pass(
    place: Place, backbone: Backbone, dataset: LoadedDataset, batch_size: int, views: Sequence[str]
) -> FrozenPass:
    """Choose the engine of a job, and read what is cached of its features."""
    record = place.spec.run_folder / _RECORD
    recorded = _recorded(record) or _reproduced(place)
    if place.checkpoint is not None and recorded is not None:
        return no_pass(recorded)  # its features have been learned from already
    names = [recorded] if recorded is not None else _names()
    images = {entry.sha256 for entry in dataset.manifest.images}
    by_name = {name: _cached(place, backbone, name, batch_size, views, images) for name in names}
    name = max(names, key=lambda name: _count(by_name[name]))  # the first of equal ones
    wanted = len(views) * len(images)
    if _count(by_name[name]) == wanted:
        return _remembered(record, FrozenPass(name, None, by_name[name]))
    most_are_there = 2 * _count(by_name[name]) > wanted
    engine = _ready_engine(place, backbone, name if most_are_there else recorded)
    cached = _cached(place, backbone, engine.name, batch_size, views, images)
    return _remembered(record, FrozenPass(engine.name, engine, cached))


def features_of_view(
    place: Place,
    backbone: Backbone,
    dataset: LoadedDataset,
    batch_size: int,
    frozen: FrozenPass,
    view: str = CENTER_CROP,
) -> Tensor:
    """Return the features of all images in manifest order, float32 `[N, D]`."""
    entries = dataset.manifest.images
    rows = dict(frozen.cached[view])
    position = {entry.sha256: index for index, entry in enumerate(entries)}
    missing = [image for image in position if image not in rows]
    if missing:
        assert frozen.engine is not None, "without an engine nothing is missing"

        def crops() -> Iterator[Tensor]:
            for start in range(0, len(missing), batch_size):
                place.advance("images", len(rows) + start, len(position))
                chosen = [position[image] for image in missing[start : start + batch_size]]
                yield pixels_of_view(dataset, view, chosen, backbone.preprocessing.crop_px)

        found = extract_features(frozen.engine, crops(), backbone.preprocessing, batch_size)
        key = _key(place, backbone, frozen.engine_name, batch_size, view)
        place.features.write(key, missing, found)
        rows |= dict(zip(missing, found, strict=True))
    place.progress.progress("images", len(position), len(position))
    return torch.stack([rows[entry.sha256] for entry in entries])


def wanted_engine(
    place: Place,
    architecture: str,
    weights: Mapping[str, Any] | None,
    preprocessing: Preprocessing,
) -> dict[str, Any] | None:
    """Return what to build for the next job on a backbone; None if there is nothing.

    Args:
        place: Where the engine would be.
        architecture: Of the backbone.
        weights: As a receipt names them; None from scratch.
        preprocessing: What the backbone is shown.
    """
    if place.device.type != "cpu" or weights is None:
        return None
    key = EngineKey(architecture, weights["sha256"], preprocessing.digest)
    if not place.engines.is_wanted(key):
        return None
    return engine_spec(architecture, weights, preprocessing)


def _names() -> list[str]:
    """Return the engines whose cached features would do, the best first."""
    return [name for name in (engine_name(), FOLDED, EAGER) if name is not None]


def _count(cached: dict[str, dict[str, Tensor]]) -> int:
    return sum(map(len, cached.values()))


def _ready_engine(place: Place, backbone: Backbone, name: str | None) -> Engine:
    """Return the engine of a name; without a name, or if it is gone, the best that is ready."""
    if place.device.type == "cpu" and name in (None, engine_name()):
        built = place.engines.load(_engine_key(place, backbone))
        if built is not None:
            return built
    probe = torch.from_numpy(golden_images(backbone.preprocessing.crop_px)).to(place.device)
    chosen = choose_engine(backbone.module, probe, backbone.preprocessing)  # compared in float32
    return replace(chosen, dtype=getattr(torch, place.numerics.dtype))


def _cached(
    place: Place,
    backbone: Backbone,
    name: str,
    batch_size: int,
    views: Sequence[str],
    images: set[str],
) -> dict[str, dict[str, Tensor]]:
    found = {}
    for view in views:
        key = _key(place, backbone, name, batch_size, view)
        rows = place.features.read(key, sorted(images))
        whole = all(row.shape == (backbone.width,) for row in rows.values())
        found[view] = rows if whole else {}
    return found


def _key(place: Place, backbone: Backbone, name: str, batch_size: int, view: str) -> FeatureKey:
    assert backbone.weights is not None, "features of random weights are not cached"
    numerics = {**place.numerics.as_json(), "engine": name, "batch": batch_size}
    del numerics["training_dtype"]  # nothing is learned from in a frozen pass
    return FeatureKey(
        place.spec.architecture,
        backbone.weights["sha256"],
        backbone.preprocessing.digest,
        numerics,
        view,
    )


def _engine_key(place: Place, backbone: Backbone) -> EngineKey:
    assert backbone.weights is not None, "engines of random weights are not built"
    return EngineKey(
        place.spec.architecture, backbone.weights["sha256"], backbone.preprocessing.digest
    )


def _reproduced(place: Place) -> str | None:
    """Return the name of the engine of the job that this one repeats, if it repeats one."""
    again = place.spec.reproduce
    return None if again is None else str(again["receipt"]["numerics"]["engine"])


def _recorded(record: Path) -> str | None:
    """Return the name of the engine that an earlier attempt of the job chose, if any."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(record.read_bytes())["engine"])
    return None


def _remembered(record: Path, frozen: FrozenPass) -> FrozenPass:
    """Write down the choice for later attempts, and return it."""
    if _recorded(record) != frozen.engine_name:
        value = canonical_json({"engine": frozen.engine_name})
        write_bytes(record, value, point="engine_choice")
    return frozen
