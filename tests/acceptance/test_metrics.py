"""`/metrics` of a real service: what it counts, and that it answers when inference is gone."""

from __future__ import annotations

import os
import re
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.client import Graft, GraftProblem
from tests.acceptance.running import RunningService
from tests.monitoring import expressions
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ROUTE = "/v1/models/{reference}/predict"


@pytest.fixture(scope="module")
def http(service: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def photograph(shared: Path) -> bytes:
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(".jpg")))


def samples(http: httpx2.Client) -> Samples:
    answer = http.get("/metrics").raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "a series appears once, whichever process it comes from"
            found[key] = sample.value
    return found


def test_metrics_tell_requests_batches_times_loads_and_jobs(
    graft: Graft, http: httpx2.Client, shared: Path, photograph: bytes
) -> None:
    dataset = graft.wait_for_dataset(graft.upload(shared / "data" / "hymenoptera.zip")["id"])
    graft.wait_for_job(graft.submit(dataset["id"], backbone="squeezenet1_1", model="seen")["id"])
    answer = http.post("/v1/models/seen/predict", content=photograph).raise_for_status()
    times = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert set(times) == {"decode", "queue", "forward", "total"}
    assert all(float(milliseconds) >= 0 for milliseconds in times.values())
    assert http.post("/v1/models/nobody/predict", content=photograph).status_code == 404
    assert http.post("/v1/models/seen/predict", content=b"no image").status_code == 422
    assert http.get("/no/such/address").status_code == 404

    found = samples(http)
    asked = [("method", "POST"), ("route", ROUTE)]
    for status, count in (("200", 1), ("404", 1), ("422", 1)):
        key = ("graft_http_requests_total", (*asked, ("status", status)))
        assert found[key] == count, status
    assert found[("graft_http_request_seconds_count", tuple(asked))] == 3
    nowhere = (("method", "GET"), ("route", "none"), ("status", "404"))
    assert found[("graft_http_requests_total", nowhere)] == 1
    assert found[("graft_predicted_images_total", (("model", "seen"),))] == 2
    of_backbone = (("architecture", "squeezenet1_1"),)
    for name in ("decode_seconds", "queue_seconds", "forward_seconds", "batch_images"):
        assert found[(f"graft_inference_{name}_count", of_backbone)] == 1, name
    assert found[("graft_inference_refused_images_total", of_backbone)] == 1
    for kind in ("head", "backbone"):
        assert found[("graft_inference_loaded", (("kind", kind),))] == 1
        assert found[("graft_inference_loads_total", (("kind", kind),))] == 1
        assert found[("graft_inference_evictions_total", (("kind", kind),))] == 0
        assert found[("graft_inference_loaded_bytes", (("kind", kind),))] > 0
    assert found[("graft_inference_images", (("place", "accepted"),))] == 0
    assert found[("graft_jobs", (("status", "succeeded"),))] >= 2
    assert found[("graft_jobs", (("status", "paused"),))] == 0
    for name in ("workers_alive", "inference_up", "database_up"):
        assert found[(f"graft_{name}", ())] == 1, name
    assert found[("graft_disk_free_bytes", ())] > 0
    for process in ("api", "inference"):
        assert found[(f"graft_{process}_process_resident_memory_bytes", ())] > 10 << 20


def test_metrics_tell_how_jobs_ended_and_how_workers_and_disk_are(http: httpx2.Client) -> None:
    found = samples(http)  # after the jobs of the test above
    for kind in ("ingest", "fine_tune"):
        outcome = (("outcome", "succeeded"), ("type", kind))
        assert found[("graft_jobs_ended_total", outcome)] == 1, kind
        for name in ("job_attempts_total", "job_run_seconds_count", "job_wait_seconds_count"):
            assert found[(f"graft_{name}", (("type", kind),))] == 1, name
        assert 0 < found[("graft_job_run_seconds_sum", (("type", kind),))] < 300
    for name in ("leases", "leases_overdue", "jobs_retried"):
        assert found[(f"graft_{name}", ())] == 0, name
    assert 0 <= found[("graft_worker_heartbeat_age_seconds", ())] < 45
    assert 0 < found[("graft_disk_free_bytes", ())] < found[("graft_disk_total_bytes", ())]
    blobs = ("graft_data_bytes", (("folder", "blobs"),))
    until(lambda: blobs in samples(http), 30)  # looked up beside requests


def test_every_family_is_documented(http: httpx2.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"`(graft_[a-z_]+)`", text))
    families = {f.name for f in text_string_to_metric_families(http.get("/metrics").text)}
    own = {name for name in families if "_process_" not in name}
    assert own == {name.removesuffix("_total") for name in documented}


def test_dashboard_and_alerts_ask_for_what_there_is(http: httpx2.Client) -> None:
    page = http.get("/metrics").raise_for_status().text
    there = set()
    for family in text_string_to_metric_families(page):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        there |= {family.name + ending for ending in endings.get(family.type, ("",))}
    asked = {name for text in expressions() for name in re.findall(r"\bgraft_\w+", text)}
    assert len(asked) > 30
    assert not asked - there


def test_metrics_answer_while_inference_is_stopped(
    service: RunningService, http: httpx2.Client
) -> None:
    inference = service.pids()["inference"]
    os.kill(inference, signal.SIGSTOP)  # worse than dead: it accepts and never answers
    try:
        found = samples(http)
    finally:
        os.kill(inference, signal.SIGCONT)
    assert found[("graft_inference_up", ())] == 0
    assert found[("graft_workers_alive", ())] == 1
    assert not any(name.startswith("graft_inference_batch") for name, _ in found)


def test_metrics_answer_while_inference_is_dead(
    service: RunningService, http: httpx2.Client, graft: Graft, photograph: bytes
) -> None:
    os.kill(service.pids()["inference"], signal.SIGKILL)
    assert samples(http)[("graft_inference_up", ())] in (0, 1)  # the supervisor is quick
    until(lambda: samples(http)[("graft_inference_up", ())] == 1, 60)

    def answers() -> bool:
        try:
            return bool(graft.predict("seen", photograph))
        except GraftProblem as problem:
            return problem.status != 503 and pytest.fail(str(problem))

    until(answers, 60)
