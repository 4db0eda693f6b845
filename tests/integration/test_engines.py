"""Engines built in the background: queued once, used by the next job and by serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import engine_builds, publish
from jobs.store import datasets, jobs, leases, workers
from jobs.store.database import Database
from jobs.store.tables import DEFAULT_PROJECT
from models_cache import engine_store
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.backbones import build_backbone
from models_cache.blobs import BlobStore
from models_cache.decode import ImageLimits
from models_cache.durable import sha256_of_bytes
from models_cache.engine_store import EngineKey, EngineRecord, EngineStore, engine_name
from models_cache.features import freeze
from models_cache.predictor import Predictor
from models_cache.preprocessing import Preprocessing
from service.engine_wishes import EngineWishes
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def head(tmp_path: Path) -> Callable[[str, int], TrainingJob]:
    """Make a job on drawn images, the first ones the same whatever their number."""
    catalogue = write_catalogue(tmp_path / "catalogue")

    def make(job_id: str, images: int, recipe: str = "head") -> TrainingJob:
        manifest = store_dataset(tmp_path, {"train": images, "val": 3})
        return TrainingJob(tmp_path, job_id, training_spec(manifest, catalogue, recipe=recipe))

    return make


def keep_engine(job: TrainingJob, wanted: dict[str, Any]) -> None:
    """Keep the engine that a job asked for, whatever timing would say of it."""
    preprocessing = Preprocessing.from_json(wanted["preprocessing"])
    weights = wanted["weights"]
    path = job.data_folder / "weights" / weights["file"]
    backbone = build_backbone(
        wanted["architecture"], weights_path=path, has_head=weights["has_head"]
    )
    network = engine_store._exported(freeze(backbone, torch.device("cpu")), preprocessing.crop_px)
    key = EngineKey(wanted["architecture"], weights["sha256"], preprocessing.digest)
    record = EngineRecord(True, "kept by a test", {}, sha256_of_bytes(network))
    EngineStore(job.data_folder / "cache" / "engines").keep(key, record, network)


def engine_of(job: TrainingJob) -> str:
    (resolved,) = (line["resolved"] for line in job.lines() if line["kind"] == "resolved")
    return str(resolved["numerics"]["engine"])


def repeating(job: TrainingJob, job_id: str) -> TrainingJob:
    """Return a job that is to repeat another one to the bit, its features not cached."""
    (receipt,) = (line["resolved"] for line in job.lines() if line["kind"] == "resolved")
    for file in (job.data_folder / "cache" / "features").iterdir():
        file.unlink()
    spec = {**job.spec, "reproduce": {"job": "job_first", "receipt": receipt}}
    return TrainingJob(job.data_folder, job_id, spec)


def model_of(job: TrainingJob) -> str:
    sha256: str = job.result()["artifact"]["files"]["model.safetensors"]["sha256"]
    return sha256


def embedded_images(job: TrainingJob) -> int:
    """Return how many images passed the backbone."""
    lines = job.lines()
    features = next(i for i, line in enumerate(lines) if line.get("phase") == "features")
    seen = [line for line in lines[features:] if line.get("unit") == "images"]
    return int(seen[-1]["total"] - seen[0]["done"])


def test_engine_child_keeps_a_verdict_and_no_job_asks_again(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    first = head("job_1", 4)
    assert first.run(children) == 0
    wanted = first.result()["next_engine"]
    spec = {**wanted, "kind": "engine", "threads": 1, "time_limit_seconds": None}
    build = TrainingJob(first.data_folder, "job_engine", spec)
    assert build.run(children) == 0
    assert build.result()["engine"] == engine_name()
    assert set(build.result()["seconds"]) >= {engine_name()}
    second = head("job_2", 4)
    assert second.run(children) == 0
    assert second.result()["next_engine"] is None
    assert model_of(second) == model_of(first)


def test_built_engine_serves_new_images_and_throws_no_cache_away(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    before = head("job_before", 4)
    assert before.run(children) == 0
    keep_engine(before, before.result()["next_engine"])

    same = head("job_same", 4)
    assert same.run(children) == 0
    assert engine_of(same) == engine_of(before) != engine_name()
    assert model_of(same) == model_of(before)

    few_more = head("job_few_more", 5)  # one image of each of two classes
    assert few_more.run(children) == 0
    assert engine_of(few_more) == engine_of(before)
    assert embedded_images(few_more) == 2

    many_more = head("job_many_more", 40)
    assert many_more.run(children) == 0
    assert engine_of(many_more) == engine_name()
    predictor = Predictor(many_more.data_folder, torch.device("cpu"), 1 << 30, ImageLimits())
    with predictor.pin(many_more.result()["artifact"]["digest"]) as model:
        assert model.backbone.engine.name == engine_name()


def test_serving_takes_the_engine_that_is_built_while_it_serves(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    job = head("job_1", 4)
    assert job.run(children) == 0
    digest, wanted = job.result()["artifact"]["digest"], job.result()["next_engine"]
    predictor = Predictor(job.data_folder, torch.device("cpu"), 1 << 30, ImageLimits())
    before = predictor.pin(digest)
    assert before.value.backbone.engine.name != engine_name()
    assert before.value.backbone.wanted_engine == wanted  # as the training says: built once
    predictor.adopt_built_engines()
    with predictor.pin(digest) as model:
        assert model.backbone is before.value.backbone
    keep_engine(job, wanted)
    predictor.adopt_built_engines()
    after = predictor.pin(digest)
    assert after.value.backbone.engine.name == engine_name()
    assert after.value.backbone.wanted_engine is None
    assert after.value.head is before.value.head
    images = [
        QueuedImage(model, pixels)
        for model in (before.value, after.value)
        for pixels in after.value.backbone.golden_images
    ]
    for queued in (images, images[2:] + images[:2]):  # a batch may hold images of both
        outcomes = predictor.forward(after.value.backbone_key, queued)
        found = [outcome.scores for outcome in outcomes if isinstance(outcome, ImageOutput)]
        np.testing.assert_allclose(found[:2], found[2:], atol=1e-3)
    before.release()
    after.release()


def test_serving_has_a_missing_engine_queued_once(database: Database) -> None:
    spec = {"architecture": "resnet18", "weights": {"sha256": "0" * 64}, "engine": "some 1.0"}

    async def story() -> None:
        first, second = EngineWishes(database), EngineWishes(database)  # of two api processes
        for wishes in (first, first, second):
            wishes.hear(spec, "default")
            wishes.hear(None, "default")
        await first.close()
        await second.close()

    asyncio.run(story())
    with database.read() as connection:
        (queued,) = jobs.newest_of_type(connection, engine_builds.TYPE, 10)
    assert queued.spec == spec


def test_a_wish_that_could_not_be_written_is_heard_again(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    hasty = Database(url, patience_seconds=0.1)
    wishes = EngineWishes(hasty)

    async def heard() -> None:
        wishes.hear({"architecture": "resnet18"}, "default")
        await wishes.close()

    with database.write():
        asyncio.run(heard())
    asyncio.run(heard())
    hasty.close()
    with database.read() as connection:
        assert len(jobs.newest_of_type(connection, engine_builds.TYPE, 10)) == 1


def test_later_attempts_stay_with_the_engine_of_the_first(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    whole = head("job_whole", 4)
    assert whole.run(children) == 0
    for file in (whole.data_folder / "cache" / "features").iterdir():
        file.unlink()
    killed = head("job_killed", 4)
    assert killed.run(children, faults="features.before_fsync=kill") != 0
    keep_engine(whole, whole.result()["next_engine"])
    assert killed.run(children) == 0
    assert engine_of(killed) == engine_of(whole)
    assert model_of(killed) == model_of(whole)


def test_reproduction_uses_the_engine_of_its_receipt_though_a_faster_one_is_ready(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    first = head("job_first", 4)
    assert first.run(children) == 0
    keep_engine(first, first.result()["next_engine"])
    again = repeating(first, "job_again")
    assert again.run(children) == 0
    assert embedded_images(again) > 0
    assert engine_of(again) == engine_of(first) != engine_name()
    assert model_of(again) == model_of(first)


def test_reproduction_names_the_engine_that_is_gone(
    children: TrainingChildren, head: Callable[..., TrainingJob]
) -> None:
    before = head("job_before", 4)
    assert before.run(children) == 0
    keep_engine(before, before.result()["next_engine"])
    first = head("job_first", 40)
    assert first.run(children) == 0
    assert engine_of(first) == engine_name()
    again = repeating(first, "job_again")
    assert again.run(children) == 0
    assert (engine_of(again), model_of(again)) == (engine_name(), model_of(first))

    for file in (first.data_folder / "cache" / "engines").iterdir():
        file.unlink()
    cached = TrainingJob(first.data_folder, "job_cached", again.spec)
    assert cached.run(children) == 0  # with every feature cached no engine is needed
    assert model_of(cached) == model_of(first)
    refused = repeating(first, "job_refused")
    assert refused.run(children) == 0
    error = refused.lines()[-1]
    assert (error["kind"], error["code"]) == ("error", "not-reproducible")
    assert f"numerics.engine was {engine_name()!r} and is" in error["message"]
    assert not any(line.get("phase") == "head" for line in refused.lines())


def test_engine_is_queued_once_and_not_again_after_a_failure(database: Database) -> None:
    spec = {"architecture": "squeezenet1_1", "engine": "x"}

    def queue() -> list[jobs.Job]:
        with database.write() as connection:
            engine_builds.queue(connection, spec, "default")
            engine_builds.queue(connection, None, "default")
            return jobs.newest_of_type(connection, engine_builds.TYPE, 10)

    assert [len(queue()), len(queue())] == [1, 1]
    with database.write() as connection:
        assert (
            jobs.page(connection, 10, None, project=DEFAULT_PROJECT) == []
        )  # nobody asked for it: it is not listed


def test_end_of_a_race_queues_the_engine_and_records_its_peak(
    database: Database, tmp_path: Path
) -> None:
    spec = {"architecture": "squeezenet1_1", "engine": "x"}
    with database.write() as connection:
        workers.register(connection, "w", "host", 1, "cpu")
        datasets.add(connection, "ds_1", "d", ("0" * 64, 1), project=DEFAULT_PROJECT)
        datasets.set_ready(connection, "ds_1", {"manifest_sha256": "0" * 64, "digest": "0" * 64})
        jobs.accept(
            connection,
            jobs.NewJob(id="j", type="race", spec={}, dataset_id="ds_1", project=DEFAULT_PROJECT),
        )
        race = leases.claim(connection, ["race"], "w", "t", timedelta(seconds=60))
    assert race is not None
    last = {
        "kind": "result",
        "at": 0.0,
        "ranking": [],
        "next_engine": spec,
        "resources": {"peak_memory_bytes": 5},
    }
    blobs = BlobStore(tmp_path / "blobs")
    publish.finish(database, blobs, race, jobs.Lease("j", "t"), last)
    with database.read() as connection:
        ended = jobs.get(connection, "j", DEFAULT_PROJECT)
        queued = jobs.newest_of_type(connection, engine_builds.TYPE, 10)
    assert ended.result == {"ranking": []}
    assert ended.resources["peak_memory_bytes"] == 5
    assert [job.spec for job in queued] == [spec]
