"""The command line against a real service, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import images
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]


def graft(service: RunningService, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", *arguments],
        env={**os.environ, "GRAFT_URL": service.url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_submit_predict_promote_download_import_and_delete(
    service: RunningService, shared: Path, tmp_path: Path
) -> None:
    archive = shared / "data" / "hymenoptera.zip"
    done = graft(service, "submit", archive, "--model", "typed", "--backbone", "squeezenet1_1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("typed version 1: ")
    assert "val/accuracy_top1" in done.stdout

    with zipfile.ZipFile(archive) as photographs:
        name = next(n for n in photographs.namelist() if n.startswith("val/ants/") and n[-1] != "/")
        (tmp_path / "ant.jpg").write_bytes(photographs.read(name))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    told = graft(
        service, "predict", "typed", tmp_path / "ant.jpg", tmp_path / "broken.jpg", "--json"
    )
    first, second = json.loads(told.stdout)
    assert first["label"] in ("ants", "bees")
    assert second["error"]["code"] == "unreadable-image"
    assert not first["abstained"]

    sure = graft(service, "predict", "typed", tmp_path / "ant.jpg", "--max-error", "0.2", "--json")
    assert json.loads(sure.stdout)[0]["label"] == first["label"]
    strict = graft(service, "predict", "typed", tmp_path / "ant.jpg", "--max-error", "0.0001")
    assert "abstained: " in strict.stdout  # no threshold can promise that
    wrong = graft(service, "predict", "typed", tmp_path / "ant.jpg", "--max-error", "2")
    assert wrong.returncode == 1
    assert "max_error" in wrong.stderr

    assert "typed" in graft(service, "models", "list").stdout
    assert json.loads(graft(service, "models", "promote", "typed", "1").stdout)["version"] == 1
    saved = tmp_path / "typed.zip"
    assert graft(service, "models", "download", "typed", "1", saved).returncode == 0
    imported = graft(service, "models", "import", "typed-again", saved)
    assert json.loads(imported.stdout)["version"] == 1
    assert graft(service, "models", "delete", "typed-again").returncode == 0
    refused = graft(service, "models", "delete", "typed-again")
    assert refused.returncode == 1
    assert refused.stderr.strip().startswith("graft: there is no model 'typed-again'")


def test_datasets_and_jobs_are_listed_shown_and_deleted(
    service: RunningService, tmp_path: Path
) -> None:
    path = images.write_zip(tmp_path / "drawn.zip", images.class_folders(("disc", "cross")))
    dataset = json.loads(graft(service, "datasets", "upload", path).stdout)
    assert dataset["status"] == "ready"
    more = images.write_zip(tmp_path / "more.zip", {"disc/x.jpg": images.shape_bytes("disc", 99)})
    grown = json.loads(graft(service, "datasets", "add", dataset["id"], more).stdout)
    assert grown["version"] == 2
    assert grown["id"] in graft(service, "datasets", "list").stdout
    assert "counts" in json.loads(graft(service, "datasets", "report", dataset["id"]).stdout)

    told = graft(service, "submit", dataset["id"], "--no-follow", "--backbone", "squeezenet1_1")
    job_id = told.stderr.split()[-1]
    assert graft(service, "jobs", "follow", job_id).returncode == 0
    assert json.loads(graft(service, "jobs", "show", job_id).stdout)["status"] == "succeeded"
    assert job_id in graft(service, "jobs", "list").stdout
    assert graft(service, "jobs", "act", job_id, "cancel").returncode == 1
    assert graft(service, "jobs", "delete", job_id).returncode == 0
    assert graft(service, "datasets", "delete", grown["id"]).returncode == 0


def test_job_file_uploads_its_folder_and_is_followed_to_a_served_model(
    service: RunningService, tmp_path: Path
) -> None:
    drawn = images.class_folders(("disc", "cross"))
    for name, data in {**drawn, ".hidden/x.jpg": b"no image"}.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    job_file = tmp_path / "job.yaml"
    job_file.write_text(
        "dataset: photos\nbackbone: squeezenet1_1\nmodel: declared\nparameters: {folds: 2}\n"
    )
    done = graft(service, "submit", job_file, "--set", "parameters.folds=3", "--seed", "9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("declared version 1: ")
    job_id = next(line.split()[1] for line in done.stderr.splitlines() if line.startswith("job "))
    spec = json.loads(graft(service, "jobs", "show", job_id).stdout)["spec"]
    assert (spec["parameters"], spec["seed"]) == ({"folds": 3}, 9)


def test_a_folder_is_predicted_and_what_was_wrong_is_learned(
    service: RunningService, tmp_path: Path
) -> None:
    drawn = images.write_zip(tmp_path / "drawn.zip", images.class_folders(("disc", "cross")))
    made = graft(service, "submit", drawn, "--model", "shapes", "--backbone", "squeezenet1_1")
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "unknown" / "deep"
    folder.mkdir(parents=True)
    for seed in range(3):
        (folder / f"{seed}.jpg").write_bytes(images.shape_bytes("disc", 700 + seed))
    table = tmp_path / "answers.csv"
    done = graft(service, "batch", "shapes", folder.parent, "--output", table, "--top-k", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 images, 0 failed")
    assert len(table.read_text().splitlines()) == 4
    nothing = graft(service, "batch", "shapes", tmp_path / "nowhere")
    assert nothing.returncode == 2
    assert "neither a file or folder nor the id of a data set" in nothing.stderr

    said = graft(service, "feedback", "give", "shapes", folder / "0.jpg", "cross")
    assert json.loads(said.stdout)["labels"] == ["cross"]
    assert "cross" in graft(service, "feedback", "list", "shapes").stdout
    applied = graft(service, "feedback", "apply", "shapes")
    assert applied.returncode == 0, applied.stderr
    assert ": 1 corrections" in applied.stdout
    assert '"version": 2' in applied.stdout


def test_data_that_must_not_be_so_fails_the_job(service: RunningService, tmp_path: Path) -> None:
    leaking = {
        f"{split}/{name}": data
        for split in ("train", "val")
        for name, data in images.class_folders(("disc", "cross")).items()
    }
    path = images.write_zip(tmp_path / "leaking.zip", leaking)
    dataset = json.loads(graft(service, "datasets", "upload", path).stdout)["id"]
    small = ("--backbone", "squeezenet1_1")
    for blocking in (("--block-on", "error"), ("--set", "block_on=error")):
        told = graft(service, "submit", dataset, *small, *blocking)
        assert told.returncode == 1
        assert "data-blocked" in told.stderr or "leakage" in told.stderr
    misspelt = graft(service, "submit", dataset, *small, "--block-on", "errors")
    assert misspelt.returncode == 1
    assert "block_on" in misspelt.stderr


def test_fault_in_a_job_file_is_told_with_its_line_and_nothing_is_uploaded(
    service: RunningService, tmp_path: Path
) -> None:
    before = graft(service, "datasets", "list", "--json").stdout
    (tmp_path / "photos.zip").write_bytes(b"")
    job_file = tmp_path / "job.yaml"
    job_file.write_text("dataset: photos.zip\nparameters:\n  fold: 3\n")
    told = graft(service, "submit", job_file)
    assert told.returncode == 1
    assert "line 3: /parameters/fold: unknown; did you mean folds?" in told.stderr
    assert graft(service, "datasets", "list", "--json").stdout == before


def test_bad_parameter_is_told_with_its_pointer(service: RunningService) -> None:
    told = graft(service, "submit", "ds_1", "-p", "folds=0")
    assert told.returncode == 1
    assert "/parameters/folds" in told.stderr


def test_service_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "models", "list"],
        env={**os.environ, "GRAFT_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1
    assert "is `graft serve` running?" in told.stderr
