"""Triton's and Hugging Face's own clients against a real service give what our own call gives."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models_cache.decode import center_crop, decode_rgb, resize_shorter_side
from models_cache.preprocessing import Preprocessing
from service.client import Graft, Json
from tests.acceptance.client_environments import run_client
from tests.acceptance.running import RunningService

pytestmark = [pytest.mark.slow, pytest.mark.shared]

TRITON = "tritonclient[http]==2.73.0"
HUGGING_FACE = "huggingface_hub==2.4.0"
MODEL = "insects"
IMAGES = 5
FACTS = Preprocessing()


@pytest.fixture(scope="module")
def images(graft: Graft, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Held-out photographs, and a model that can be asked about them."""
    archive = shared / "data" / "hymenoptera.zip"
    dataset = graft.wait_for_dataset(graft.upload(archive, name="hymenoptera")["id"])
    job = graft.submit(dataset["id"], backbone="squeezenet1_1", model=MODEL)
    graft.wait_for_job(job["id"])
    folder = tmp_path_factory.mktemp("images")
    with zipfile.ZipFile(archive) as photographs:
        names = [n for n in photographs.namelist() if n.startswith("val/") and n.endswith(".jpg")]
        for name in names[:: len(names) // IMAGES][:IMAGES]:
            (folder / Path(name).name).write_bytes(photographs.read(name))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def expected(graft: Graft, images: list[Path]) -> list[list[float]]:
    """The scores that our own call gives, in the order of the classes."""
    predictions = graft.predict(MODEL, *images)["predictions"]
    scores = [{s["label"]: s["score"] for s in p["scores"]} for p in predictions]
    return [[by_label["ants"], by_label["bees"]] for by_label in scores]


@pytest.fixture(scope="module")
def triton(
    service: RunningService, images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Json:
    path = tmp_path_factory.mktemp("tensors") / "pixels.npy"
    np.save(path, np.stack([preprocessed(image.read_bytes()) for image in images]))
    return run_client("triton_infer", TRITON, service.url, MODEL, str(images[0].parent), str(path))


@pytest.fixture(scope="module")
def hugging_face(service: RunningService, images: list[Path]) -> Json:
    return run_client("hugging_face_task", HUGGING_FACE, service.url, MODEL, str(images[0]))


def preprocessed(data: bytes) -> NDArray[np.float32]:
    """Return what a user's own preprocessing gives, float32 `[3, 224, 224]`."""
    resized = resize_shorter_side(decode_rgb(data), FACTS.resize_px, FACTS.interpolation)
    pixels = center_crop(resized, FACTS.crop_px) / 255
    normalised = (pixels - np.array(FACTS.mean)) / np.array(FACTS.std)
    tensor: NDArray[np.float32] = normalised.transpose(2, 0, 1).astype(np.float32)
    return tensor


def test_triton_finds_server_and_model(triton: Json) -> None:
    names = ("live", "ready", "model_ready", "version_ready")
    assert all(triton[name] for name in names)
    assert triton["other_ready"] is False
    assert triton["server"]["name"] == "graft"
    assert triton["model"] == triton["version"]
    assert triton["model"]["versions"] == ["1"]
    assert triton["model"]["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
    ]
    assert triton["model"]["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 2]}
    assert triton["model"]["parameters"]["labels"] == ["ants", "bees"]


def test_triton_gets_our_scores_in_every_form(triton: Json, expected: list[list[float]]) -> None:
    wanted = pytest.approx(np.array(expected), abs=1e-5)
    for name in ("probabilities", "of_column", "of_version", "in_json", "of_pixels"):
        assert np.array(triton[name]) == wanted, name
    assert np.array(triton["of_pixels_in_json"][0]) == pytest.approx(expected[0], abs=1e-5)
    logits = np.exp(np.array(triton["logits"]))
    assert logits / logits.sum(axis=1, keepdims=True) == wanted
    best = [int(np.argmax(row)) for row in expected]
    found = [text.split(":")[1:] for text in triton["classified"]]
    assert found == [[str(index), ["ants", "bees"][index]] for index in best]


def test_triton_gets_its_request_id_and_the_version_that_answered(triton: Json) -> None:
    answer = triton["answer"]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (MODEL, "1", "seven")
    assert [output["name"] for output in answer["outputs"]] == ["logits", "probabilities"]
    (output,) = triton["json_answer"]["outputs"]
    assert output["shape"] == [IMAGES, 2]
    assert len(output["data"]) == IMAGES * 2
    assert "id" not in triton["json_answer"]


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ("no model", "404", "nothing"),
        ("no version", "404", "77"),
        ("no image", "400", "/inputs/0/data/1: the image cannot be decoded"),
        ("wrong input", "400", "'pixels' of FP32"),
        ("wrong size", "400", "[3, 224, 224]"),
        ("wrong output", "400", "logits, probabilities"),
        ("packed", "400", "gzip"),
    ],
)
def test_triton_is_told_what_is_wrong(triton: Json, what: str, status: str, words: str) -> None:
    assert triton["refused"][what]["status"] == status
    assert words in triton["refused"][what]["message"]


def test_hugging_face_gets_our_scores(hugging_face: Json, expected: list[list[float]]) -> None:
    by_label = dict(zip(("ants", "bees"), expected[0], strict=True))
    for name in ("by_path", "as_bytes", "softmax"):
        found = hugging_face[name]
        assert {item["label"]: item["score"] for item in found} == pytest.approx(by_label, abs=1e-5)
        assert found[0]["score"] >= found[1]["score"]
    assert hugging_face["best"] == hugging_face["by_path"][:1]


def test_hugging_face_gets_other_functions_of_the_logits(hugging_face: Json) -> None:
    logits = {item["label"]: item["score"] for item in hugging_face["none"]}
    scores = {item["label"]: item["score"] for item in hugging_face["softmax"]}
    odds = math.log(scores["ants"] / scores["bees"])
    assert logits["ants"] - logits["bees"] == pytest.approx(odds, abs=1e-3)
    for item in hugging_face["sigmoid"]:
        assert item["score"] == pytest.approx(1 / (1 + math.exp(-logits[item["label"]])))


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ("no model", 404, "there is no model"),
        ("no image", 400, "the image cannot be decoded"),
        ("function", 400, "function_to_apply"),
    ],
)
def test_hugging_face_is_told_what_is_wrong(
    hugging_face: Json, what: str, status: int, words: str
) -> None:
    assert hugging_face["refused"][what]["status"] == status
    assert words in hugging_face["refused"][what]["message"]
