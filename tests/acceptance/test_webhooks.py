"""Webhooks of a real service at a real receiver, checked by the independent `standardwebhooks`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.webhooks.signing import new_secret
from service.client import Graft, GraftProblem, Json
from service.free_port import free_port
from tests import images
from tests.acceptance.running import RunningService, running
from tests.receiver import Receiver, receiver
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

SETTINGS = {
    "GRAFT_EGRESS_ALLOW": "127.0.0.1/32",
    "GRAFT_WEBHOOK_TIMEOUT_SECONDS": "2",
    "GRAFT_WEBHOOK_RETRY_SECONDS": "0.05",
    "GRAFT_FAULTS": "webhook.after_send=kill",  # the first message kills its worker
    "GRAFT_LOG_LEVEL": "debug",
}
QUICK: dict[str, Any] = {"backbone": "squeezenet1_1", "parameters": {"folds": 2}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service") / "data"
    catalogue = shared / "weights" / "catalog.json"
    with running(folder, catalogue=catalogue, environment=SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def dataset_id(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = images.write_zip(
        tmp_path_factory.mktemp("data") / "told.zip",
        images.class_folders(("disc", "cross"), per_class=10),
    )
    found = graft.upload(archive, name="told")
    return str(graft.wait_for_dataset(found["id"])["id"])


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


def delivery_of(graft: Graft, job_id: str) -> Json:
    """Return the message about an ended job, once it is pending no more."""

    def look() -> Json | None:
        found = graft.webhook_deliveries(job_id)
        return found[0] if found and found[0]["status"] != "pending" else None

    return until(look, 60.0)


def test_a_success_is_told_even_if_the_worker_dies_behind_the_sending(
    graft: Graft, service: RunningService, dataset_id: str, hook: Receiver
) -> None:
    worker = service.pids()["worker"]
    job = graft.submit(dataset_id, model="told", webhook={"url": hook.url()}, **QUICK)
    secret = job["webhook"]["secret"]
    assert graft.webhook_deliveries(job["id"]) == []
    done = graft.wait_for_job(job["id"])
    delivery = delivery_of(graft, job["id"])
    assert delivery["status"] == "delivered"
    assert [a["error"] for a in delivery["attempts"]] == ["unknown", None]
    assert [each.id for each in hook.received] == [delivery["id"]] * 2
    message = hook.received[1].verified(secret)
    assert message == hook.received[0].verified(secret)
    assert message["type"] == "job.succeeded"
    assert message["data"]["model"] == "told"
    assert message["data"]["version"] == done["result"]["version"]
    assert message["data"]["metrics"] == done["metrics"]
    assert until(lambda: service.pids().get("worker"), 10.0) != worker

    assert done["webhook"] == {"url": hook.url(), "secret": None}  # told once
    again = graft.redeliver(job["id"], delivery["id"])
    assert again["status"] == "pending"
    until(lambda: len(hook.received) == 3, 10.0)
    assert hook.received[2].verified(secret) == message
    assert hook.received[2].id == delivery["id"]
    log = service.log_path.read_text(errors="replace")
    assert "webhook msg_" in log
    assert secret not in log
    assert secret.removeprefix("whsec_") not in log


def test_failures_of_a_receiver_are_tried_again_and_logged(
    graft: Graft, dataset_id: str, hook: Receiver
) -> None:
    hook.plan.statuses = [500, 503, 200]
    secret = new_secret()
    job = graft.submit(dataset_id, webhook={"url": hook.url(), "secret": secret}, **QUICK)
    assert job["webhook"]["secret"] is None  # it is the caller's
    graft.act(job["id"], "cancel")
    delivery = delivery_of(graft, job["id"])
    # The first is not known if it is the one that killed its worker, where this test runs alone
    assert delivery["attempts"][0]["response_status"] in (500, None)
    assert [a["response_status"] for a in delivery["attempts"][1:]] == [503, 200]
    assert len(hook.received) == 3
    assert {each.verified(secret)["type"] for each in hook.received} == {delivery["event"]}
    times = [int(each.headers["webhook-timestamp"]) for each in hook.received]
    assert times == sorted(times)


def test_a_receiver_that_hangs_does_not_delay_jobs(
    graft: Graft, dataset_id: str, hook: Receiver
) -> None:
    hook.plan.hanging = {"/hang"}
    slow = graft.submit(dataset_id, webhook={"url": hook.url("/hang")}, **QUICK)
    graft.act(slow["id"], "cancel")
    until(lambda: hook.at_once == 1, 20.0)
    done = graft.wait_for_job(graft.submit(dataset_id, model="quick", **QUICK)["id"])
    assert done["status"] == "succeeded"
    assert graft.webhook_deliveries(slow["id"])[0]["status"] == "pending"


def test_what_an_address_says_of_itself_is_refused_before_the_job(
    graft: Graft, dataset_id: str
) -> None:
    before = [job["id"] for job in graft.jobs()]
    for url in (
        "http://10.0.0.1/hook",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "https://user:hunter2@example.com/",
        "https://8.8.8.8:22/",
        "ftp://example.com/",
    ):
        with pytest.raises(GraftProblem) as refused:
            graft.submit(dataset_id, webhook={"url": url}, **QUICK)
        assert (refused.value.status, refused.value.code) == (422, "forbidden-url"), url
        assert "hunter2" not in json.dumps(refused.value.problem)
    for webhook in (
        {"url": "https://example.com/", "secret": "whsec_c2VjcmV0"},
        {"url": ""},
        {"url": "https://example.com/", "events": []},
        "https://example.com/",
    ):
        with pytest.raises(GraftProblem) as refused:
            graft.submit(dataset_id, webhook=webhook, **QUICK)
        assert (refused.value.status, refused.value.code) == (422, "validation-failed")
        assert "c2VjcmV0" not in json.dumps(refused.value.problem)
    assert [job["id"] for job in graft.jobs()] == before


def test_a_repeated_request_and_a_retry_tell_no_secret_and_a_retry_is_told_too(
    graft: Graft, dataset_id: str, hook: Receiver
) -> None:
    fields = {"webhook": {"url": hook.url()}, **QUICK}
    job = graft.submit(dataset_id, idempotency_key="told", **fields)
    secret = job["webhook"]["secret"]
    repeated = graft.submit(dataset_id, idempotency_key="told", **fields)
    assert (repeated["id"], repeated["webhook"]["secret"]) == (job["id"], None)
    graft.act(job["id"], "cancel")
    delivery_of(graft, job["id"])
    again = graft.act(job["id"], "retry")
    assert again["webhook"] == {"url": hook.url(), "secret": None}
    graft.act(again["id"], "cancel")
    delivery_of(graft, again["id"])
    told = [each.verified(secret)["data"]["id"] for each in hook.received]
    assert told == [job["id"], again["id"]]
    with pytest.raises(GraftProblem) as refused:
        graft.redeliver(job["id"], graft.webhook_deliveries(again["id"])[0]["id"])
    assert (refused.value.status, refused.value.code) == (404, "delivery-not-found")


def test_the_receiver_of_the_documentation_works(
    graft: Graft, dataset_id: str, tmp_path: Path
) -> None:
    """The example as it stands, with its secret and its port."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    secret, port = new_secret(), free_port("127.0.0.1")
    program = tmp_path / "example.py"
    program.write_text(
        example.replace("whsec_...", secret).replace('("", 8080)', f'("127.0.0.1", {port})')
    )
    output = tmp_path / "output"
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-u", str(program)], stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            webhook = {"url": f"http://127.0.0.1:{port}/", "secret": secret}
            job = graft.submit(dataset_id, webhook=webhook, **QUICK)
            graft.act(job["id"], "cancel")
            delivery = delivery_of(graft, job["id"])
            until(lambda: job["id"] in output.read_text(), 10.0)
        finally:
            process.kill()
    assert delivery["status"] == "delivered", output.read_text()


def test_messages_are_counted_by_state(service: RunningService) -> None:
    with httpx2.Client(trust_env=False) as client:
        page = client.get(f"{service.url}/metrics").text
    counts = dict(re.findall(r'graft_webhook_deliveries\{status="(\w+)"\} (\d+)', page))
    assert set(counts) == {"pending", "delivered", "failed", "blocked", "gone"}
    assert int(counts["delivered"]) >= 2


def test_jobs_in_openais_shape_have_one_too(graft: Graft, dataset_id: str, hook: Receiver) -> None:
    body = {
        "training_file": dataset_id,
        "model": "squeezenet1_1",
        "webhook": {"url": hook.url()},
    }
    job = graft._call("POST", "/v1/fine_tuning/jobs", json=body)
    secret = job["webhook"]["secret"]
    graft.act(job["id"], "cancel")
    delivery_of(graft, job["id"])
    assert hook.received[0].verified(secret)["data"]["id"] == job["id"]
