"""2,000 status reads and 2,000 predictions mixed while a job trains: not one error."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from service.client import Graft
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

REQUESTS = 2000
CLIENTS = 4  # of each kind

Call = Callable[[httpx2.Client], httpx2.Response]


def _repeat(url: str, call: Call, failures: list[str]) -> None:
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        for _ in range(REQUESTS // CLIENTS):
            answer = call(http)
            if answer.status_code != 200:
                failures.append(f"{answer.request.url}: {answer.status_code} {answer.text[:200]}")


def test_reads_and_predictions_never_fail_while_a_job_trains(
    graft: Graft, service: RunningService, shared: Path
) -> None:
    archive = shared / "data" / "hymenoptera.zip"
    dataset = graft.wait_for_dataset(graft.upload(archive)["id"])
    first = graft.submit(dataset["id"], backbone="squeezenet1_1", model="busy")
    graft.wait_for_job(first["id"])
    training = graft.submit(
        dataset["id"], backbone="mobilenet_v2", recipe="finetune", model="busy-training"
    )
    with zipfile.ZipFile(archive) as photographs:
        names = [n for n in photographs.namelist() if n.startswith("val/ants/") and n[-1] != "/"]
        image = photographs.read(names[0])
    failures: list[str] = []
    calls: tuple[Call, ...] = (
        lambda http: http.get(f"/v1/jobs/{training['id']}"),
        lambda http: http.post("/v1/models/busy/predict", content=image),
    )
    threads = [
        threading.Thread(target=_repeat, args=(service.url, call, failures))
        for call in calls * CLIENTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert graft.job(training["id"])["status"] in ("running", "succeeded")
    if graft.job(training["id"])["status"] == "running":
        graft.act(training["id"], "cancel")
