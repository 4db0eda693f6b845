"""OpenAI's own client against a real service: files, uploads in parts, fine-tuning jobs, models."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from service.client import Graft, Json
from tests.acceptance.client_environments import run_client
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

CLIENT = "openai==3.54.0"


@pytest.fixture(scope="module")
def said(service: RunningService, shared: Path) -> Json:
    return run_client("openai_job", CLIENT, service.url, str(shared / "data" / "hymenoptera.zip"))


@pytest.fixture(scope="module")
def edges(
    service: RunningService,
    graft: Graft,
    shared: Path,
    said: Json,
    tmp_path_factory: pytest.TempPathFactory,
) -> Json:
    model = said["ended"]["fine_tuned_model"]
    copied = graft.download_archive(model, 1, tmp_path_factory.mktemp("copied") / "model.zip")
    graft.import_archive("copied", copied)
    archive = shared / "data" / "hymenoptera.zip"
    return run_client("openai_edges", CLIENT, service.url, str(archive))


def test_an_uploaded_file_is_a_data_set(said: Json, graft: Graft, shared: Path) -> None:
    archive = shared / "data" / "hymenoptera.zip"
    assert said["file"]["object"] == "file"
    assert said["file"]["status"] == "uploaded"
    assert said["file"]["filename"] == "hymenoptera.zip"
    assert said["processed"]["status"] == "processed"
    assert said["files"] == [said["file"]["id"]]
    assert said["content_bytes"] == said["file"]["bytes"] == archive.stat().st_size
    assert graft.dataset(said["file"]["id"])["classes"] == ["ants", "bees"]


def test_a_job_on_a_file_that_is_still_checked_waits_for_it(said: Json) -> None:
    assert said["created"]["status"] == "validating_files"
    assert said["created"]["fine_tuned_model"] is None
    assert said["created"]["hyperparameters"]["n_epochs"] == "auto"


def test_a_job_can_be_followed_to_its_end(said: Json) -> None:
    assert said["ended"]["status"] == "succeeded"
    assert said["ended"]["finished_at"] >= said["ended"]["created_at"]
    assert said["ended"]["seed"] == 3
    assert said["ended"]["metadata"] == {"team": "insects"}
    assert said["messages"][0] == "The job is queued"
    assert said["messages"][-1] == "The job is succeeded"
    assert any(message.startswith("Phase ") for message in said["messages"])


def test_the_log_in_pages_is_the_log_at_once(said: Json) -> None:
    assert said["events_in_pages"] == said["events_at_once"]
    assert len(said["events_at_once"]) == len(said["messages"]) > 3


def test_a_running_job_is_cancelled(said: Json, graft: Graft) -> None:
    assert said["cancelled"]["status"] == "cancelled"
    assert said["cancelled"]["recipe"] == "finetune"
    assert said["cancelled"]["hyperparameters"]["n_epochs"] == 500
    assert said["jobs"] == [said["cancelled"]["id"], said["ended"]["id"]]
    assert "never" not in said["models"]


def test_the_model_is_listed_and_predicts(said: Json, graft: Graft, shared: Path) -> None:
    assert said["ended"]["fine_tuned_model"] == said["model"]["id"] == "openai-insects"
    assert said["models"] == ["openai-insects"]
    (checkpoint,) = said["checkpoints"]
    assert checkpoint["fine_tuned_model_checkpoint"] == "openai-insects@1"
    assert checkpoint["metrics"]["val/accuracy_top1"] >= 0.9
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        name = next(n for n in archive.namelist() if n.startswith("val/bees/") and n[-1] != "/")
        image = archive.read(name)
    for reference in (said["ended"]["fine_tuned_model"], checkpoint["fine_tuned_model_checkpoint"]):
        (prediction,) = graft.predict(reference, image)["predictions"]
        assert prediction["label"] == "bees"


def test_an_archive_in_parts_is_the_same_data_set(said: Json, edges: Json) -> None:
    assert edges["upload"]["status"] == "completed"
    assert edges["upload"]["parts"] == {}
    assert edges["file"]["filename"] == "in-parts.zip"
    assert edges["file"]["status"] == "processed"
    assert edges["file"]["bytes"] == said["file"]["bytes"]
    assert edges["file"]["id"] != said["file"]["id"]
    assert edges["cancelled_upload"]["status"] == "cancelled"
    assert edges["deleted"] == {"id": edges["file"]["id"], "object": "file", "deleted": True}


def test_a_model_is_deleted(edges: Json) -> None:
    assert edges["deleted_model"] == {"id": "copied", "object": "model", "deleted": True}


def test_a_waiting_job_is_paused_and_resumed(edges: Json) -> None:
    assert edges["paused"]["status"] == "paused"
    assert edges["resumed"]["status"] in ("validating_files", "queued", "running")
    assert edges["resumed"]["hyperparameters"]["n_epochs"] == 1
    assert edges["resumed"]["hyperparameters"]["learning_rate_multiplier"] == 0.5
    assert edges["cancelled_job"]["status"] == "cancelled"


@pytest.mark.parametrize(
    ("what", "kind", "code", "param"),
    [
        ("no file", "NotFoundError", "dataset-not-found", None),
        ("no backbone", "BadRequestError", "backbone-unknown", None),
        ("validation file", "BadRequestError", "validation-failed", "validation_file"),
        ("method", "BadRequestError", "validation-failed", "method.type"),
        ("no job", "NotFoundError", "job-not-found", None),
        ("no model", "NotFoundError", "model-not-found", None),
        ("no archive", "BadRequestError", "archive-type-unknown", None),
        ("purpose", "BadRequestError", "validation-failed", "purpose"),
        ("part of a cancelled upload", "BadRequestError", "upload-ended", None),
    ],
)
def test_an_error_is_told_as_the_client_reads_it(
    edges: Json, what: str, kind: str, code: str, param: str | None
) -> None:
    error = edges["refused"][what]
    assert (error["kind"], error["code"], error["param"]) == (kind, code, param)
    assert error["message"]
