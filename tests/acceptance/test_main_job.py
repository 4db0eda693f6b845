"""The main job over HTTP on real photographs, real weights, real processes."""

from __future__ import annotations

import base64
import zipfile
from pathlib import Path

import httpx2
import pytest

from service.client import Graft, GraftProblem, Json
from tests.acceptance.judging import right_answers
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

HELD_OUT = 153


@pytest.fixture(scope="module")
def dataset(graft: Graft, shared: Path) -> Json:
    archive = shared / "data" / "hymenoptera.zip"
    return graft.wait_for_dataset(graft.upload(archive, name="hymenoptera")["id"])


@pytest.fixture(scope="module")
def head_job(graft: Graft, dataset: Json) -> Json:
    job = graft.submit(dataset["id"], backbone="mobilenet_v2", recipe="head", model="insects")
    return graft.wait_for_job(job["id"])


def served_accuracy(graft: Graft, shared: Path, dataset: Json, reference: str) -> float:
    """Predict every held-out photograph's original bytes over HTTP."""
    right = right_answers(graft, shared / "data" / "hymenoptera.zip", dataset, reference)
    count: int = dataset["splits"]["val"]["images"]
    return right / count


def test_dataset_has_the_splits_of_the_archive_and_names_the_placeholder(
    graft: Graft, dataset: Json
) -> None:
    assert dataset["classes"] == ["ants", "bees"]
    assert dataset["splits"]["val"]["images"] == HELD_OUT
    assert dataset["splits"]["train"]["images"] in (244, 245)
    assert "imageNotFound.gif" in str(graft.report(dataset["id"]))


def test_head_serves_what_the_job_reported(
    graft: Graft, shared: Path, dataset: Json, head_job: Json
) -> None:
    reported = head_job["metrics"]["val/accuracy_top1"]
    assert reported >= 0.94
    assert served_accuracy(graft, shared, dataset, "insects") == pytest.approx(reported, abs=1e-9)


def test_squeezenet_head_reaches_its_bar(graft: Graft, shared: Path, dataset: Json) -> None:
    job = graft.submit(dataset["id"], backbone="squeezenet1_1", model="insects-small")
    reported = graft.wait_for_job(job["id"])["metrics"]["val/accuracy_top1"]
    assert reported >= 0.90
    served = served_accuracy(graft, shared, dataset, "insects-small")
    assert served == pytest.approx(reported, abs=1e-9)


def test_finetune_is_not_worse_than_head(
    graft: Graft, shared: Path, dataset: Json, head_job: Json
) -> None:
    job = graft.submit(
        dataset["id"],
        backbone="squeezenet1_1",
        recipe="finetune",
        model="insects-tuned",
        parameters={"epochs": 2},
    )
    tuned = graft.wait_for_job(job["id"])
    head = graft.model("insects-small")["default"]["metrics"]["val/accuracy_top1"]
    reported = tuned["metrics"]["val/accuracy_top1"]
    assert reported >= head - 0.01
    served = served_accuracy(graft, shared, dataset, "insects-tuned")
    assert served == pytest.approx(reported, abs=1e-9)
    assert head_job["status"] == "succeeded"


def test_predict_takes_raw_multipart_and_json_alike(
    graft: Graft, service: RunningService, shared: Path, head_job: Json
) -> None:
    assert head_job["result"]["model"] == "insects"
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        name = next(n for n in archive.namelist() if n.startswith("val/ants/") and n[-1] != "/")
        image = archive.read(name)
    url = f"{service.url}/v1/models/insects/predict"
    with httpx2.Client(timeout=60, trust_env=False) as http:
        raw = http.post(url, content=image, headers={"content-type": "image/jpeg"})
        bare = http.post(url, content=image)
        parts = http.post(url, files=[("files", ("a.jpg", image)), ("files", ("b.jpg", image))])
        coded = http.post(url, json={"inputs": [{"b64": base64.b64encode(image).decode()}]})
        short = http.post(f"{url}?top_k=1", content=image)
        broken = http.post(url, content=b"no image")
        mixed = http.post(url, files=[("files", ("a", image)), ("files", ("b", b"no image"))])
    answers = [raw, bare, parts, coded, short, mixed]
    assert [answer.status_code for answer in answers] == [200] * 6
    scores = [answer.json()["predictions"][0]["scores"][0]["score"] for answer in answers]
    assert max(scores) - min(scores) < 1e-4
    assert len(raw.json()["predictions"][0]["scores"]) == 2
    assert len(short.json()["predictions"][0]["scores"]) == 1
    assert raw.json()["model"]["version"] == 1
    assert broken.status_code == 422
    assert broken.json()["code"] == "unreadable-image"
    assert mixed.json()["predictions"][1]["error"]["code"] == "unreadable-image"


def test_aliases_move_by_compare_and_set_and_roll_back(graft: Graft, dataset: Json) -> None:
    first = graft.submit(dataset["id"], backbone="squeezenet1_1", model="moving")
    graft.wait_for_job(first["id"])
    second = graft.submit(dataset["id"], backbone="squeezenet1_1", model="moving", promote=False)
    graft.wait_for_job(second["id"])
    assert graft.model("moving")["aliases"] == {"default": 1, "latest": 2}
    with pytest.raises(GraftProblem) as refused:
        graft.set_alias("moving", "default", 2, if_current=2)
    assert refused.value.status == 409
    graft.set_alias("moving", "default", 2, if_current=1)
    assert graft.model("moving")["aliases"]["default"] == 2
    graft.set_alias("moving", "default", 1)
    with pytest.raises(GraftProblem) as reserved:
        graft.set_alias("moving", "latest", 1)
    assert reserved.value.code == "alias-reserved"


def test_downloaded_artifact_can_be_imported_and_answers_the_same(
    graft: Graft, service: RunningService, shared: Path, head_job: Json, tmp_path: Path
) -> None:
    version = head_job["result"]["version"]
    archive = graft.download_archive("insects", version, tmp_path / "insects.zip")
    files = httpx2.get(f"{service.url}/v1/models/insects/versions/{version}").json()["files"]
    assert set(zipfile.ZipFile(archive).namelist()) == set(files)
    assert {"artifact.json", "model.safetensors", "README.md", "confusion.svg"} <= set(files)
    imported = graft.import_archive("insects-imported", archive)
    assert graft.evaluation("insects-imported", 1) == graft.evaluation("insects", version)
    assert imported["version"] == 1
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as photographs:
        name = next(n for n in photographs.namelist() if n.startswith("val/bees/") and n[-1] != "/")
        image = photographs.read(name)
    first, second = (graft.predict(n, image) for n in ("insects", "insects-imported"))
    assert first["predictions"] == second["predictions"]
    tampered = tmp_path / "tampered.zip"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    tampered.write_bytes(bytes(data))
    with pytest.raises(GraftProblem) as refused:
        graft.import_archive("insects-imported", tampered)
    assert refused.value.status == 422


def test_evaluation_names_every_held_out_image(graft: Graft, head_job: Json) -> None:
    evaluation = graft.evaluation("insects", head_job["result"]["version"])
    confusion = evaluation["confusion"]
    assert sum(sum(row) for row in confusion) == HELD_OUT
    assert evaluation["calibration"]["fitted_on"] == "train-folds"
    assert evaluation["roc"]["auc"] > 0.98
    wrong = [row for row in evaluation["predictions"] if row["label"] != row["predicted"]]
    assert len(evaluation["most_confident_errors"]) == len(wrong)


def test_card_and_plots_can_be_looked_at(service: RunningService, head_job: Json) -> None:
    base = f"{service.url}/v1/models/insects/versions/{head_job['result']['version']}/files"
    card = httpx2.get(f"{base}/README.md")
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert "## Licence" in card.text
    plot = httpx2.get(f"{base}/confusion.svg")
    assert plot.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in plot.headers["content-security-policy"]
    assert plot.headers["x-content-type-options"] == "nosniff"
    assert httpx2.get(f"{base}/secrets.txt").status_code == 404
    assert httpx2.get(f"{base}/..%2F..%2Fdatabase").status_code in (404, 422)


def test_photographs_of_another_kind_are_called_out_of_distribution(
    graft: Graft, shared: Path, dataset: Json, head_job: Json
) -> None:
    model = f"insects@{head_job['result']['version']}"
    flagged = {}
    for name, wanted in (
        ("hymenoptera.zip", lambda path: path.startswith("val/") and path.endswith(".jpg")),
        ("PennFudanPed.zip", lambda path: "/PNGImages/" in path and path.endswith(".png")),
    ):
        with zipfile.ZipFile(shared / "data" / name) as archive:
            paths = sorted(filter(wanted, archive.namelist()))[::5]
            images = [archive.read(path) for path in paths[:32]]
        predictions = graft.predict(model, *images)["predictions"]
        assert all(p["abstained"] or not p["out_of_distribution"] for p in predictions)
        flagged[name] = sum(p["out_of_distribution"] for p in predictions) / len(images)
    assert flagged["hymenoptera.zip"] <= 0.1
    assert flagged["PennFudanPed.zip"] >= 0.8


def test_a_stated_error_budget_is_kept(
    graft: Graft, shared: Path, dataset: Json, head_job: Json
) -> None:
    model = f"insects@{head_job['result']['version']}"
    held_out = graft.images(dataset["id"], split="val")[:32]
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        images = [archive.read(item["path"]) for item in held_out]
    answer = graft.predict(model, *images, max_error=0.05)
    assert answer["abstention"]["error_bound"] <= 0.05
    answered = [p for p in answer["predictions"] if not p["abstained"]]
    assert len(answered) >= 16
    assert all(p["score"] > answer["abstention"]["threshold"] for p in answered)
    impossible = graft.predict(model, images[0], max_error=0.0001)
    assert impossible["abstention"]["threshold"] is None
    assert impossible["predictions"][0]["abstained"]
    assert impossible["predictions"][0]["label"] in ("ants", "bees")


def test_events_are_gapless_and_resumable(graft: Graft, head_job: Json) -> None:
    events = list(graft.events(head_job["id"]))
    assert events[-1]["event"] == "end"
    numbers = [event["data"]["seq"] for event in events if "seq" in event.get("data", {})]
    assert numbers == list(range(1, len(numbers) + 1))
    states = [e["data"]["data"]["status"] for e in events if e["event"] == "state"]
    assert states == ["queued", "running", "succeeded"]
