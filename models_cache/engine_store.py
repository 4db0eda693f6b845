"""Engines that are built once and kept on disk: networks for ONNX Runtime.

A record says what came of building one: verified and faster than torch's engines on this machine,
or not, and why. The record is written last and names the SHA-256 of the network, so a reader finds
both or nothing. Both files may be deleted at any time; then the next job has it built again. An
engine that was not faster may have been timed beside other work: it is timed again, twice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from models_cache import durable
from models_cache.classifiers import golden_images
from models_cache.engines import Engine, agree, choose_engine
from models_cache.features import freeze, is_out_of_memory
from models_cache.onnx_network import onnx_bytes, open_session
from models_cache.preprocessing import Preprocessing

log = logging.getLogger(__name__)

PACKAGE = "onnxruntime"
_SUFFIX = ".onnx"
_CPU = torch.device("cpu")
_FORMAT = 1
_PROBE_IMAGES = 32  # the batch of a feature pass
_ROUNDS = 3  # of timing; the shortest of each engine counts
_NOT_FASTER = "not faster"
_MOST_TIMINGS = 3  # of an engine that is not faster, ever
_TIMED_AGAIN_SECONDS = 3600.0  # after the last one, at the earliest: other work may have ended
_FASTER = 0.95  # a built engine must take at most this part of the time of torch's


def engine_name() -> str | None:
    """Return the name that built engines have now; None where ONNX Runtime is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


@dataclass(frozen=True)
class EngineKey:
    """What a built engine depends on.

    Args:
        architecture: Which network.
        weights_sha256: Of the file with its values.
        preprocessing_digest: Of what it is shown; its size is part of the network's shapes.
    """

    architecture: str
    weights_sha256: str
    preprocessing_digest: str

    @property
    def digest(self) -> str:
        """SHA-256 over all parts, and the versions of what builds and runs it."""
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        parts = {**asdict(self), **versions, "engine": engine_name(), "format": _FORMAT}
        return durable.sha256_of_bytes(durable.canonical_json(parts))


def engine_spec(
    architecture: str, weights: Mapping[str, Any], preprocessing: Preprocessing
) -> dict[str, Any]:
    """Return what a job that builds an engine is told.

    Args:
        architecture: Of the backbone.
        weights: As a receipt or an artifact names them.
        preprocessing: What the backbone is shown.
    """
    return {
        "architecture": architecture,
        "weights": {
            "file": weights["file"],
            "sha256": weights["sha256"],
            "has_head": bool(weights.get("has_head", True)),
        },
        "preprocessing": preprocessing.as_json(),
        "engine": engine_name(),
    }


@dataclass(frozen=True)
class EngineRecord:
    """What came of building an engine.

    Args:
        usable: Whether it gives the eager features, and faster.
        reason: Why, in a few words.
        seconds: Of one pass of 32 images, by the engine's name; empty if it was not timed.
        sha256: Of the network's file, if usable.
        timings: How often it was built and timed on this machine.
        timed_at: When last, in seconds since 1970.
    """

    usable: bool
    reason: str
    seconds: dict[str, float]
    sha256: str | None
    timings: int = 0
    timed_at: float = 0.0


class EngineStore:
    """A folder of built engines.

    Args:
        root: The folder; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def record(self, key: EngineKey) -> EngineRecord | None:
        """Return what came of building an engine; None if nothing is known."""
        with suppress(OSError, ValueError, TypeError):
            return EngineRecord(**json.loads(self._path(key, ".json").read_bytes()))
        return None

    def is_wanted(self, key: EngineKey) -> bool:
        """Tell whether the engine could be built here, and has not been, or is gone.

        One that was not faster is wanted again an hour later, until it was timed three times.
        """
        record = self.record(key)
        if record is None:
            known = False
        elif record.usable:
            known = self._path(key, _SUFFIX).exists()
        else:
            known = not _is_timed_again(record)
        return engine_name() is not None and not known

    def load(self, key: EngineKey) -> Engine | None:
        """Return a usable engine, its bytes checked, with as many threads as torch has.

        None if there is none, or it cannot be loaded: then the engines of torch do it.
        """
        record, name = self.record(key), engine_name()
        if record is None or not record.usable or name is None:
            return None
        path = self._path(key, _SUFFIX)
        try:
            network = path.read_bytes()
            if durable.sha256_of_bytes(network) != record.sha256:
                path.unlink(missing_ok=True)  # damaged: it is built again
                return None
            engine = _engine(name, network)
        except MemoryError:
            raise
        except Exception:  # a broken library, a file it cannot read: torch's engines do it
            log.exception("the engine %s cannot be loaded", path.name)
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use, for whoever bounds the cache
        return engine

    def keep(self, key: EngineKey, record: EngineRecord, network: bytes | None) -> None:
        """Store what came of building an engine now; the network first."""
        last = self.record(key)
        timings = 1 if last is None else last.timings + 1
        record = replace(record, timings=timings, timed_at=time.time())
        if network is not None:
            durable.write_bytes(self._path(key, _SUFFIX), network, point="engine")
        value = durable.canonical_json(asdict(record))
        durable.write_bytes(self._path(key, ".json"), value, point="engine_record")

    def _path(self, key: EngineKey, suffix: str) -> Path:
        return self._root / f"{key.digest}{suffix}"


def _is_timed_again(record: EngineRecord) -> bool:
    again_at = record.timed_at + _TIMED_AGAIN_SECONDS
    slow = record.reason == _NOT_FASTER
    return slow and record.timings < _MOST_TIMINGS and time.time() >= again_at


def build_engine(
    backbone: nn.Module, preprocessing: Preprocessing
) -> tuple[EngineRecord, bytes | None]:
    """Build an engine, compare it with the eager network, and time both.

    Args:
        backbone: On the CPU.
        preprocessing: What it is shown.

    Returns:
        What came of it, and the network if it is usable.
    """
    name = engine_name()
    assert name is not None, "an engine is built where its runtime is installed"
    eager = Engine.of("eager", freeze(backbone, _CPU))
    probe = _probe(preprocessing)
    try:
        network = _exported(backbone, preprocessing.crop_px)
        engine = _engine(name, network)
        same = agree(engine.features(probe, preprocessing), eager.features(probe, preprocessing))
    except Exception as error:  # what an exporter or a runtime cannot do has any class
        if is_out_of_memory(error):  # says nothing about the network
            raise
        return EngineRecord(False, f"not exported: {error}"[:300], {}, None), None
    if not same:
        return EngineRecord(False, "its features are not the eager ones", {}, None), None
    rival = choose_engine(backbone, probe[:2], preprocessing)
    seconds = _timed([engine, rival], probe, preprocessing)
    if seconds[engine.name] > _FASTER * seconds[rival.name]:
        return EngineRecord(False, _NOT_FASTER, seconds, None), None
    sha256 = durable.sha256_of_bytes(network)
    return EngineRecord(True, "the same features, faster", seconds, sha256), network


def _probe(preprocessing: Preprocessing) -> Tensor:
    """Return drawn images, uint8 `[B, crop, crop, 3]`: the golden ones, moved and mirrored."""
    images = torch.from_numpy(golden_images(preprocessing.crop_px))
    step = max(1, preprocessing.crop_px // _PROBE_IMAGES)
    moved = [images.roll(step * shift, dims=2) for shift in range(_PROBE_IMAGES // len(images))]
    probe = torch.cat(moved)
    probe[1::4] = probe[1::4].flip(2)
    return probe


def _timed(engines: list[Engine], probe: Tensor, preprocessing: Preprocessing) -> dict[str, float]:
    """Return the shortest time of one pass by the engine's name, in seconds; in turns."""
    shortest = {engine.name: float("inf") for engine in engines}
    for _ in range(_ROUNDS):
        for engine in engines:
            started = time.monotonic()
            engine.features(probe, preprocessing)
            elapsed_seconds = time.monotonic() - started
            shortest[engine.name] = min(shortest[engine.name], round(elapsed_seconds, 4))
    return shortest


def _exported(backbone: nn.Module, crop_px: int) -> bytes:
    """Return the network in ONNX, for batches of any size."""
    example = torch.zeros(2, 3, crop_px, crop_px)
    batches = {name: {0: "B"} for name in ("images", "features")}
    return onnx_bytes(backbone, example, ("images", ["features"]), batches)


def _engine(name: str, network: bytes) -> Engine:
    runner = _OnnxNetwork(network, torch.get_num_threads())
    return Engine(name, runner, _CPU, len(network), planar=True)


class _OnnxNetwork(nn.Module):
    """A network that ONNX Runtime runs: float32 `[B, 3, H, W]` -> `[B, D]`, on the CPU.

    Args:
        network: ONNX.
        threads: Of one pass.
    """

    def __init__(self, network: bytes, threads: int) -> None:
        super().__init__()
        self._session = open_session(network, threads)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of a batch."""
        (features,) = self._session.run(None, {"images": images.numpy()})
        return torch.from_numpy(features)
