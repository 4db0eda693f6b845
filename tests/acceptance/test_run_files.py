"""A job's figures, log and progress over HTTP, while it exists and no longer."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from jobs.metrics_files import EVENTS_NAME
from service.client import Graft
from tests import images
from tests.acceptance.running import RunningService
from tests.unit.test_metrics_files import events_in

pytestmark = [pytest.mark.slow, pytest.mark.shared]


def test_figures_of_a_job_can_be_downloaded_and_are_those_of_its_events(
    service: RunningService, graft: Graft, tmp_path: Path
) -> None:
    archive = images.write_zip(tmp_path / "drawn.zip", images.class_folders(("disc", "cross")))
    dataset = graft.wait_for_dataset(graft.upload(archive, name="drawn")["id"])
    job = graft.submit(
        dataset["id"], recipe="finetune", backbone="squeezenet1_1", parameters={"epochs": 2}
    )
    job = graft.wait_for_job(job["id"])
    url = f"{service.url}/v1/jobs/{job['id']}"
    listed = httpx2.get(f"{url}/files").json()["data"]
    sizes = {file["name"]: file["size"] for file in listed}
    assert sizes.keys() >= {"log.txt", "progress.jsonl", "metrics.jsonl", EVENTS_NAME}

    answer = httpx2.get(f"{url}/files/metrics.jsonl")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert len(answer.content) == sizes["metrics.jsonl"]
    lines = [json.loads(line) for line in answer.text.splitlines()]
    told = [
        event["data"]["data"] for event in graft.events(job["id"]) if event["event"] == "metrics"
    ]
    expected = [(e["step"], e["metrics"]) for e in told if "step" in e]
    final = {
        f"final/{name}": value
        for name, value in job["metrics"].items()
        if name in told[-1]["final"]
    }
    places = ("step", "epoch", "time")
    found = [(line["step"], {k: v for k, v in line.items() if k not in places}) for line in lines]
    assert found[:-1] == expected
    assert found[-1][1] == final
    assert [line["epoch"] for line in lines if "val/loss" in line] == [0, 1, 2]

    events = httpx2.get(f"{url}/files/{EVENTS_NAME}")
    assert events.headers["content-type"] == "application/octet-stream"
    (tmp_path / EVENTS_NAME).write_bytes(events.content)
    assert [event.step for event in events_in(tmp_path / EVENTS_NAME)[1:]] == [s for s, _ in found]

    assert httpx2.get(f"{url}/files/spec.json").status_code == 404
    graft.delete_job(job["id"])
    assert httpx2.get(f"{url}/files/metrics.jsonl").status_code == 404
    assert not (service.data_folder / "runs" / job["id"]).exists()
