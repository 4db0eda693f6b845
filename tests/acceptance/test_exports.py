"""Exports over HTTP: the examples in them, run without Graft, say what the service says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import Graft, GraftProblem, Json
from tests import images
from tests.acceptance.client_environments import run_outside
from tests.acceptance.running import RunningService
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

FORMATS = ("onnx", "torch_export")
#: All that the ONNX example needs: no torch.
WITHOUT_TORCH = " ".join(f"{p}=={version(p)}" for p in ("onnxruntime", "numpy", "pillow"))
TOLERANCE = 1e-2
_WHAT_IT_NEEDS = {"onnx": "onnxruntime, numpy and Pillow", "torch_export": "torch and Pillow"}
#: Runs a program as if torch and Pillow were all there is.
_TORCH_ALONE = """
import runpy, sys
for name in ("torchvision", "numpy", "onnxruntime", "safetensors"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_LABELS = {"disc": ["disc", "round"], "square": ["square", "angular"], "cross": ["cross"]}


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real photographs, and what people make of them: tiny, tall, rotated, transparent, grey."""
    folder = tmp_path_factory.mktemp("photographs")
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        names = [n for n in sorted(archive.namelist()) if "val/" in n and n.endswith(".jpg")]
        data = [archive.read(name) for name in names[::19]]
    paths = []
    for number, content in enumerate(data):
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(content)
    first = Image.open(io.BytesIO(data[0])).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    first.save(folder / "rotated.jpg", exif=exif)
    first.resize((61, 43)).save(folder / "tiny.png")
    first.resize((90, 701)).save(folder / "tall.png")
    first.convert("L").save(folder / "grey.png")
    faint = first.convert("RGBA")
    faint.putalpha(120)
    faint.save(folder / "faint.png")
    return [*paths, *sorted(folder.glob("*.png")), folder / "rotated.jpg"]


def submitted(graft: Graft, archive: Path, model: str, **fields: Any) -> int:  # noqa: ANN401
    dataset = graft.wait_for_dataset(graft.upload(archive, name=model)["id"])
    job = graft.wait_for_job(graft.submit(dataset["id"], model=model, **fields)["id"])
    return int(job["result"]["version"])


@pytest.fixture(scope="module")
def models(graft: Graft, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Versions by name: a head, a whole network, a head with several labels."""
    folder = tmp_path_factory.mktemp("archives")
    shapes = images.write_zip(
        folder / "shapes.zip", images.class_folders(("disc", "cross"), per_class=8)
    )
    rows, labelled = [], {}
    for shape, labels in _LABELS.items():
        for seed in range(12):
            name = f"{shape}{seed}.png"
            labelled[name] = images.encode(images.draw_shape(shape, seed), "PNG")
            rows.append(json.dumps({"file_name": name, "labels": labels}))
    labelled["metadata.jsonl"] = "\n".join(rows).encode()
    several = images.write_zip(folder / "labels.zip", labelled)
    photos = shared / "data" / "hymenoptera.zip"
    small = {"backbone": "squeezenet1_1"}
    return {
        "head": submitted(graft, photos, "head", backbone="mobilenet_v2"),
        "whole": submitted(
            graft, shapes, "whole", recipe="scratch", parameters={"epochs": 1}, **small
        ),
        "several": submitted(graft, several, "several", **small),
    }


@pytest.fixture(scope="module")
def exported(
    graft: Graft, models: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Json, Path]]:
    """Return what exports a model once: the export, and the folder of its unpacked zip."""
    made: dict[tuple[str, str], tuple[Json, Path]] = {}

    def export(model: str, format_name: str) -> tuple[Json, Path]:
        key = (model, format_name)
        if key not in made:
            number = models[model]
            export_id = graft.export(model, number, format_name)["id"]
            graft.wait_for_job(export_id)
            folder = tmp_path_factory.mktemp(f"{model}-{format_name}")
            saved = graft.download_export(model, number, export_id, folder / "export.zip")
            with zipfile.ZipFile(saved) as archive:
                archive.extractall(folder)
            made[key] = graft.export_of(model, number, export_id), folder
        return made[key]

    return export


def told_by_example(folder: Path, format_name: str, paths: list[Path]) -> list[list[str]]:
    """Return the columns that the example of an export prints for some images."""
    arguments = [str(path) for path in paths]
    if format_name == "onnx":
        printed = run_outside(WITHOUT_TORCH, folder / "example.py", *arguments)
    else:
        command = [sys.executable, "-I", "-c", _TORCH_ALONE, str(folder / "example.py")]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        printed = done.stdout
    return [line.split("\t") for line in printed.splitlines()]


def test_environment_of_the_onnx_example_has_no_torch(tmp_path: Path) -> None:
    program = tmp_path / "look.py"
    program.write_text(
        "from importlib.util import find_spec as find\n"
        "print([n for n in ('torch', 'torchvision', 'jobs', 'models_cache') if find(n)])"
    )
    assert run_outside(WITHOUT_TORCH, program).strip() == "[]"


@pytest.mark.parametrize("model", ["head", "whole", "several"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_example_without_graft_says_what_the_service_says(
    graft: Graft,
    exported: Callable[[str, str], tuple[Json, Path]],
    photographs: list[Path],
    model: str,
    format_name: str,
) -> None:
    export, folder = exported(model, format_name)
    assert export["status"] == "succeeded"
    assert export["checked"]["resized"] <= 1e-4
    assert export["checked"]["any_size"] <= TOLERANCE
    rows = told_by_example(folder, format_name, photographs)
    served = graft.predict(model, *photographs)["predictions"]
    largest = 0.0
    for path, answer in zip(photographs, served, strict=True):
        scores = {item["label"]: item["score"] for item in answer["scores"]}
        mine = [row for row in rows if row[0] == str(path)]
        assert len(mine) == min(5, len(scores))
        assert [float(row[2]) for row in mine] == sorted((float(r[2]) for r in mine), reverse=True)
        for row in mine:
            difference = abs(scores[row[1]] - float(row[2]))
            assert difference <= TOLERANCE, (path.name, row, scores)
            largest = max(largest, difference)
        if model == "several":
            said = {row[1] for row in mine if row[3] == "yes"}
            assert said == set(answer["labels"])
    print(f"{model} {format_name}: at most {largest:.1e}")  # noqa: T201 - a figure to look at


def test_zip_holds_card_labels_licence_and_how_it_was_checked(
    exported: Callable[[str, str], tuple[Json, Path]],
) -> None:
    for format_name, graph in (("onnx", "model.onnx"), ("torch_export", "model.pt2")):
        export, folder = exported("head", format_name)
        assert (folder / graph).stat().st_size > 5_000_000
        card = (folder / "README.md").read_text()
        assert card.startswith(f"# Export of head, version 1, as {format_name}")
        assert "# Image classifier: 2 classes on `mobilenet_v2`" in card
        assert (folder / "confusion.svg").exists()
        labels = json.loads((folder / "labels.json").read_text())
        assert labels["labels"] == ["ants", "bees"]
        assert json.loads((folder / "preprocessing.json").read_text())["crop_px"] == 224
        licence = json.loads((folder / "licence.json").read_text())["pretrained_weights"]
        assert licence["license"]
        told = json.loads((folder / "export.json").read_text())
        assert told["checked"] == export["checked"]
        example = (folder / "example.py").read_text()
        assert _WHAT_IT_NEEDS[format_name] in example
        assert len([line for line in example.splitlines() if line.strip()]) <= 25
    thresholds = json.loads((exported("several", "onnx")[1] / "labels.json").read_text())
    assert len(thresholds["thresholds"]) == len(thresholds["labels"]) == 5


def test_graph_takes_batches_of_any_size(
    exported: Callable[[str, str], tuple[Json, Path]], tmp_path: Path
) -> None:
    import onnxruntime  # noqa: PLC0415 - loaded for this test alone

    _, folder = exported("whole", "onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    random = np.random.default_rng(0)
    for shape in ((1, 30, 40, 3), (5, 301, 299, 3), (2, 1, 1, 3)):
        batch = random.integers(0, 256, shape, dtype=np.uint8)
        probabilities, logits = session.run(None, {"images": batch})
        assert probabilities.shape == logits.shape == (shape[0], 2)
        alone = session.run(None, {"images": batch[-1:]})[0]
        assert np.abs(alone - probabilities[-1]).max() < 1e-5


def test_same_export_is_asked_for_twice_and_made_once(
    graft: Graft, models: dict[str, int], exported: Callable[[str, str], tuple[Json, Path]]
) -> None:
    export, folder = exported("whole", "onnx")
    again = graft.export("whole", models["whole"], "onnx")
    assert again == export
    assert graft.job(export["id"])["result"]["file"] == export["file"]
    assert export["file"]["size"] == (folder / "export.zip").stat().st_size
    other = graft.export("whole", models["whole"], "torch_export")
    assert other["id"] != export["id"]


def test_what_cannot_be_exported_is_refused(graft: Graft, models: dict[str, int]) -> None:
    cases: list[tuple[Callable[[], object], int, str]] = [
        (lambda: graft.export("whole", models["whole"], "tflite"), 422, "validation-failed"),
        (lambda: graft.export("whole", 99, "onnx"), 404, "version-not-found"),
        (lambda: graft.export("nobody", 1, "onnx"), 404, "model-not-found"),
        (lambda: graft.export_of("whole", models["whole"], "job_0"), 404, "export-not-found"),
        (lambda: graft.submit("ds_x", type="export"), 422, "validation-failed"),
    ]
    for call, status, code in cases:
        with pytest.raises(GraftProblem) as refused:
            call()
        assert (refused.value.status, refused.value.code) == (status, code)


def test_cancelled_export_has_no_file_and_can_be_asked_for_again(
    graft: Graft, service: RunningService, models: dict[str, int]
) -> None:
    number = models["whole"]
    graft.delete_job(graft.export("whole", number, "onnx")["id"])
    export = graft.export("whole", number, "onnx")
    graft.act(export["id"], "cancel")
    until(lambda: graft.job(export["id"])["status"] == "cancelled", 5.0)
    with pytest.raises(GraftProblem) as refused:
        graft.download_export("whole", number, export["id"], service.data_folder / "x.zip")
    assert refused.value.code == "export-not-ready"
    again = graft.export("whole", number, "onnx")
    assert again["id"] != export["id"]
    graft.wait_for_job(again["id"])


def test_command_line_exports_what_is_served(
    service: RunningService, models: dict[str, int], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "service.cli.main", "export", "several"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "several.zip")],
        env={**os.environ, "GRAFT_URL": service.url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("several.zip")
    with zipfile.ZipFile(tmp_path / "several.zip") as archive:
        assert "model.onnx" in archive.namelist()


def test_deleted_version_takes_its_exports_along(
    graft: Graft, service: RunningService, tmp_path: Path
) -> None:
    graft.import_archive("gone", graft.download_archive("whole", 1, tmp_path / "whole.zip"))
    done = graft.export("gone", 1, "onnx")
    graft.wait_for_job(done["id"])
    waiting = graft.export("gone", 1, "torch_export")
    graft.delete_model("gone")
    with pytest.raises(GraftProblem, match="there is no job"):
        graft.job(done["id"])
    assert not (service.data_folder / "runs" / done["id"]).exists()
    ended = until(lambda: _ended(graft, waiting["id"]), 30.0)
    assert ended["status"] in ("cancelled", "failed")
    with pytest.raises(GraftProblem, match="there is no model"):
        graft.export_of("gone", 1, done["id"])


def _ended(graft: Graft, job_id: str) -> Json | None:
    job = graft.job(job_id)
    return job if job["status"] in ("cancelled", "failed", "succeeded") else None
