"""Faults planted among real photographs are named, by the upload and by the first job."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from service.client import Graft, JobFailed, Json
from tests import images
from tests.acceptance.running import RunningService
from tests.copies import COPIES, copied, photographs

pytestmark = [pytest.mark.slow, pytest.mark.shared]

PLANTED = 10  # of each kind
SEED = 0
#: The one photograph that has a finding of its own: over three times as wide as high.
LONG = "train/ants/662541407_ff8db781e7.jpg"


@dataclass(frozen=True)
class Planted:
    """An archive's files, and what is wrong with them."""

    files: dict[str, bytes]
    leaked: set[str]
    copied: set[str]
    flipped: set[str]


def other(path: str) -> str:
    """Return the path under the other class."""
    split, name, file = path.split("/")
    return f"{split}/{'bees' if name == 'ants' else 'ants'}/{file}"


@pytest.fixture(scope="module")
def planted(shared: Path) -> Planted:
    files = photographs(shared / "data" / "hymenoptera.zip")
    del files[LONG]
    train = [path for path in files if path.startswith("train/")]
    chosen = np.random.default_rng(SEED).choice(train, 3 * PLANTED, replace=False).tolist()
    leaked, near, flipped = chosen[:PLANTED], chosen[PLANTED:-PLANTED], chosen[-PLANTED:]
    for path in leaked:
        files[path.replace("train/", "val/").replace(".jpg", "_again.jpg")] = files[path]
    for path, how in zip(near, [*COPIES, *COPIES], strict=True):
        name = path.replace("train/", "val/").replace(".jpg", f"_{how}.jpg")
        files[name] = copied(files[path], how)
    for path in flipped:
        files[other(path)] = files.pop(path)
    return Planted(files, set(leaked), set(near), {other(path) for path in flipped})


@pytest.fixture(scope="module")
def dataset(graft: Graft, planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Json:
    archive = tmp_path_factory.mktemp("upload") / "planted.zip"
    images.write_zip(archive, planted.files)
    return graft.wait_for_dataset(graft.upload(archive, name="planted")["id"])


@pytest.fixture(scope="module")
def clean_but_flipped(
    graft: Graft, planted: Planted, tmp_path_factory: pytest.TempPathFactory
) -> Json:
    """A data set with nothing wrong that pixels could tell."""
    files = {path: data for path, data in planted.files.items() if path.count("_") == 1}
    archive = images.write_zip(tmp_path_factory.mktemp("upload") / "flipped.zip", files)
    return graft.wait_for_dataset(graft.upload(archive, name="flipped")["id"])


def findings(graft: Graft, dataset: Json) -> dict[str, Any]:
    return {found["code"]: found for found in graft.report(dataset["id"])["findings"]}


def train_paths(finding: Json) -> set[str]:
    paths = {image["path"] for group in finding["items"] for image in group["images"]}
    return {path for path in paths if path.startswith("train/")}


def test_upload_names_every_exact_copy_and_nearly_every_other_across_splits(
    graft: Graft, dataset: Json, planted: Planted
) -> None:
    found = findings(graft, dataset)
    assert found["leakage"]["severity"] == found["near-leakage"]["severity"] == "error"
    assert train_paths(found["leakage"]) == planted.leaked
    assert found["leakage"]["count"] == PLANTED
    near = train_paths(found["near-leakage"])
    assert near <= planted.copied
    assert len(near) >= PLANTED - 1
    assert "near-duplicates" not in found
    assert graft.report(dataset["id"])["examined"] is None


def test_first_job_names_flipped_labels_and_says_so_everywhere(
    graft: Graft, service: RunningService, dataset: Json, planted: Planted
) -> None:
    told = []
    for _ in range(2):
        job = graft.wait_for_job(graft.submit(dataset["id"], backbone="mobilenet_v2")["id"])
        told.append(findings(graft, dataset))
    assert told[0] == told[1]
    suspects = [item["path"] for item in told[0]["likely-mislabelled"]["items"]]
    assert len(planted.flipped & set(suspects)) >= 7
    assert len(suspects) <= 2 * PLANTED + 5
    report = graft.report(dataset["id"])
    assert report["examined"]["job"] == job["id"]
    assert report["examined"]["backbone"] == "mobilenet_v2"
    with httpx2.Client(base_url=service.url, trust_env=False) as http:
        file = http.get(f"/v1/jobs/{job['id']}/files/data_report.json").json()
    assert file["findings"] == [f for f in report["findings"] if f["code"] in _codes(file)]
    warned = [e["data"]["data"] for e in graft.events(job["id"]) if e["event"] == "warning"]
    assert "likely-mislabelled" in {warning["code"] for warning in warned}


def _codes(file: Json) -> set[str]:
    return {found["code"] for found in file["findings"]}


def test_job_that_must_not_have_errors_ends_before_it_trains(graft: Graft, dataset: Json) -> None:
    job = graft.submit(dataset["id"], backbone="squeezenet1_1", block_on="error")
    with pytest.raises(JobFailed) as failed:
        graft.wait_for_job(job["id"])
    error = failed.value.job["error"]
    assert error["code"] == "data-blocked"
    assert "leakage (10), near-leakage" in error["detail"]
    assert not [event for event in graft.events(job["id"]) if event["event"] == "phase"]


def test_job_that_must_not_have_warnings_ends_after_its_head(
    graft: Graft, clean_but_flipped: Json
) -> None:
    assert findings(graft, clean_but_flipped) == {}
    job = graft.submit(clean_but_flipped["id"], backbone="mobilenet_v2", block_on="warning")
    with pytest.raises(JobFailed) as failed:
        graft.wait_for_job(job["id"])
    assert failed.value.job["error"]["code"] == "data-blocked"
    assert "likely-mislabelled (" in failed.value.job["error"]["detail"]
    phases = [e["data"]["data"]["phase"] for e in graft.events(job["id"]) if e["event"] == "phase"]
    assert phases[-1] == "head"
    assert "likely-mislabelled" in findings(graft, clean_but_flipped)
    allowed = graft.submit(clean_but_flipped["id"], backbone="mobilenet_v2", block_on="error")
    assert graft.wait_for_job(allowed["id"])["status"] == "succeeded"


def test_command_line_prints_findings_and_its_status_tells_of_errors(
    service: RunningService, dataset: Json, clean_but_flipped: Json, tmp_path: Path
) -> None:
    def doctor(data: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service.cli.main", "doctor", str(data)]
        return subprocess.run(
            [*command, "--url", service.url], capture_output=True, text=True, timeout=120
        )

    bad, fair = doctor(dataset["id"]), doctor(clean_but_flipped["id"])
    assert bad.returncode == 1, bad.stderr
    assert "near-leakage" in bad.stdout
    assert fair.returncode == 0, fair.stderr
    broken = images.write_zip(tmp_path / "broken.zip", {"a/1.jpg": b"no", "b/2.jpg": b"no"})
    rejected = doctor(broken)
    assert rejected.returncode == 1
    assert "a/1.jpg" in rejected.stdout
    report = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "datasets", "report", dataset["id"],
         "--url", service.url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert json.loads(report.stdout)["findings"]
