"""A request is found again in the spans and log lines of every process that it reached."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.client import Graft, Json
from tests.acceptance.collector import Collector, Span, collecting
from tests.acceptance.running import RunningService, running
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
OF_CALLER = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "request-of-the-job"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, collector: Collector
) -> Iterator[RunningService]:
    environment = {
        "GRAFT_TRACES_URL": collector.url,
        "GRAFT_LOG_FORMAT": "json",
        "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
    }
    folder = tmp_path_factory.mktemp("traced") / "data"
    catalogue = shared / "weights" / "catalog.json"
    with running(folder, catalogue=catalogue, environment=environment) as started:
        yield started


@pytest.fixture(scope="module")
def job(graft: Graft, service: RunningService, shared: Path) -> Json:
    dataset = graft.wait_for_dataset(graft.upload(shared / "data" / "hymenoptera.zip")["id"])
    asked = {"dataset": dataset["id"], "backbone": "squeezenet1_1", "model": "traced"}
    with httpx2.Client(base_url=service.url, trust_env=False) as http:
        answer = http.post("/v1/jobs", json=asked, headers=OF_CALLER).raise_for_status()
    return graft.wait_for_job(answer.json()["id"])


def one(collector: Collector, service: str, name: str, trace: str = TRACE) -> Span:
    found = until(
        lambda: [span for span in collector.spans(service, name) if span.trace == trace],
        30,
        what=f"a span {name} of {service}",
    )
    assert len(found) == 1
    return found[0]


def test_spans_lead_from_the_caller_through_the_job_to_its_child(
    job: Json, collector: Collector
) -> None:
    request = one(collector, "graft-api", "POST /v1/jobs")
    attempt = one(collector, "graft-worker", "attempt fine_tune")
    child = one(collector, "graft-child", "fine_tune")
    assert [request.parent, attempt.parent, child.parent] == [
        CALLER,
        request.identity,
        attempt.identity,
    ]
    assert request.attributes["http.route"] == "/v1/jobs"
    assert attempt.attributes["graft.job"] == child.attributes["graft.job"] == job["id"]
    assert attempt.attributes["graft.attempt"] == "1"


def test_a_prediction_has_a_span_in_inference_below_that_of_the_request(
    job: Json, service: RunningService, collector: Collector, shared: Path
) -> None:
    trace = "1" * 32
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        image = archive.read(next(n for n in archive.namelist() if n.endswith(".jpg")))
    headers = {"traceparent": f"00-{trace}-{CALLER}-01", "x-request-id": "request-of-an-image"}
    with httpx2.Client(base_url=service.url, trust_env=False, timeout=60) as http:
        path = "/v1/models/traced/predict"
        http.post(path, content=image, headers=headers).raise_for_status()
        http.get("/healthz").raise_for_status()
    request = one(collector, "graft-api", "POST /v1/models/{reference}/predict", trace)
    answered = one(collector, "graft-inference", "POST /predict", trace)
    assert answered.parent == request.identity
    assert not collector.spans("graft-api", "GET /healthz")


def test_every_line_of_every_process_is_json_and_says_what_it_is_about(
    job: Json, service: RunningService
) -> None:
    lines = [json.loads(line) for line in service.log_path.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    of_worker = [line for line in lines if line.get("job_id") == job["id"]]
    assert [line["message"] for line in of_worker if line["logger"] == "jobs.trail"] == [
        "an attempt (fine_tune) has begun",
        "an attempt (fine_tune) is over",
    ]
    assert {line["request_id"] for line in of_worker} == {"request-of-the-job"}
    assert {line["attempt"] for line in of_worker} == {1}
    (access,) = [line for line in lines if line.get("path") == "/v1/jobs"]
    assert (access["method"], access["status"]) == ("POST", 202)
    assert access["request_id"] == "request-of-the-job"
    assert access["duration_ms"] > 0
    assert {"service.supervisor", "uvicorn.error"} <= {line["logger"] for line in lines}


def test_the_log_of_the_job_itself_says_where_it_came_from(
    job: Json, service: RunningService
) -> None:
    path = f"{service.url}/v1/jobs/{job['id']}/events"
    first = httpx2.get(path, trust_env=False).raise_for_status().json()["data"][0]
    assert first["data"]["status"] == "queued"
    assert first["data"]["origin"]["request_id"] == "request-of-the-job"
    assert first["data"]["origin"]["traceparent"].startswith(f"00-{TRACE}-")
