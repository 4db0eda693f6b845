"""Built engines: the eager features, kept and checked, and a fall back when they are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models_cache import engine_store
from models_cache.backbones import build_backbone
from models_cache.durable import sha256_of_bytes
from models_cache.engine_store import EngineKey, EngineRecord, EngineStore, build_engine
from models_cache.engines import Engine, agree, extract_features
from models_cache.features import freeze
from tests.training_jobs import REPOSITORY, SMALL

KEY = EngineKey("squeezenet1_1", "0" * 64, SMALL.digest)


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return freeze(build_backbone("squeezenet1_1"), torch.device("cpu"))


@pytest.fixture(scope="module")
def network(backbone: nn.Module) -> bytes:
    return engine_store._exported(backbone, SMALL.crop_px)


def usable(network: bytes) -> EngineRecord:
    sha256 = sha256_of_bytes(network)
    return EngineRecord(True, "the same features, faster", {}, sha256)


def pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)


def test_building_says_what_came_of_it(backbone: nn.Module) -> None:
    record, network = build_engine(backbone, SMALL)
    assert (network is not None) == record.usable  # on some machine it may not be faster
    assert len(record.seconds) == 2
    assert all(seconds > 0 for seconds in record.seconds.values())


def test_network_that_cannot_be_exported_is_remembered_as_such(tmp_path: Path) -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
                raise ValueError("not in a trace")
            return images.mean(dim=(2, 3)) * self.weight

    store = EngineStore(tmp_path)
    assert store.is_wanted(KEY)
    store.keep(KEY, *build_engine(Refusing(), SMALL))
    record = store.record(KEY)
    assert record is not None
    assert not record.usable
    assert "not in a trace" in record.reason
    assert not store.is_wanted(KEY)
    assert store.load(KEY) is None


def test_kept_engine_gives_the_eager_features(
    tmp_path: Path, backbone: nn.Module, network: bytes
) -> None:
    store = EngineStore(tmp_path)
    store.keep(KEY, usable(network), network)
    engine = store.load(KEY)
    assert engine is not None
    assert engine.name == engine_store.engine_name()
    eager = Engine.of("eager", backbone)
    assert agree(engine.features(pixels(5), SMALL), eager.features(pixels(5), SMALL))


@pytest.mark.parametrize("damage", ["gone", "damaged", "no record"])
def test_engine_that_is_not_whole_is_not_loaded_but_wanted_again(
    tmp_path: Path, network: bytes, damage: str
) -> None:
    store = EngineStore(tmp_path)
    store.keep(KEY, usable(network), network)
    (file,), (record,) = tmp_path.glob("*.onnx"), tmp_path.glob("*.json")
    if damage == "gone":
        file.unlink()
    elif damage == "damaged":
        file.write_bytes(network[:-1])
    else:
        record.write_text(json.dumps({"usable": True}))
    assert store.load(KEY) is None
    assert store.is_wanted(KEY)


def test_an_engine_that_is_not_faster_is_timed_again_an_hour_later_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = EngineStore(tmp_path), 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    wanted_after = []
    for _ in range(3):
        store.keep(KEY, EngineRecord(False, "not faster", {"eager": 1.0}, None), None)
        assert not store.is_wanted(KEY)
        now += 3600
        wanted_after.append(store.is_wanted(KEY))
    assert wanted_after == [True, True, False]
    store.keep(KEY, EngineRecord(False, "not exported: no", {}, None), None)
    now += 3600
    assert not store.is_wanted(KEY)


def test_without_the_runtime_nothing_is_wanted_or_loaded(tmp_path: Path, network: bytes) -> None:
    EngineStore(tmp_path).keep(KEY, usable(network), network)
    program = f"""
import importlib.util, sys
from pathlib import Path
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
from models_cache.durable import sha256_of_bytes
from models_cache.engine_store import EngineKey, EngineStore, engine_name
store = EngineStore(Path({str(tmp_path)!r}))
key = EngineKey("squeezenet1_1", "0" * 64, {SMALL.digest!r})
assert engine_name() is None
assert store.load(key) is None
assert not store.is_wanted(key)
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)


def test_a_session_leaves_nothing_in_the_home_folder(tmp_path: Path, network: bytes) -> None:
    home, file = tmp_path / "home", tmp_path / "network.onnx"
    home.mkdir()
    file.write_bytes(network)
    program = f"""
import time
from models_cache.onnx_network import open_session
open_session({str(file)!r}, 1)
time.sleep(1)  # its events are written by a thread
"""
    environment = {name: value for name, value in os.environ.items() if "ORT_" not in name}
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        check=True,
        timeout=120,
    )
    assert [path for path in home.rglob("*") if "icrosoft" in path.name] == []


@pytest.mark.parametrize("kind", ["eager", "built"])
def test_features_of_an_image_do_not_depend_on_its_companions(
    backbone: nn.Module, network: bytes, kind: str
) -> None:
    built = engine_store._engine("built", network)
    engine = built if kind == "built" else Engine.of("eager", backbone)
    images = pixels(11)
    together = extract_features(engine, images.split(4), SMALL, 4)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    mixed = extract_features(engine, images[order].split(4), SMALL, 4)
    assert torch.equal(mixed, together[order])
    alone = [extract_features(engine, [image[None]], SMALL, 4) for image in images]
    assert torch.equal(torch.cat(alone), together)


def test_an_engine_of_a_lower_precision_gives_near_features_in_float32(
    backbone: nn.Module,
) -> None:
    pixels = torch.randint(0, 256, (2, SMALL.crop_px, SMALL.crop_px, 3), dtype=torch.uint8)
    eager = Engine.of("eager", backbone)
    expected = eager.features(pixels, SMALL)
    found = replace(eager, dtype=torch.bfloat16).features(pixels, SMALL)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
