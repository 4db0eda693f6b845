"""`graft demo`: the whole main job on real input, in front of the user, leaving nothing behind."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.datasets.archive import read_archive
from jobs.datasets.limits import IngestLimits
from service.cli.client_commands import follow_job, upload_with_bar
from service.cli.demo_data import DemoPlan, choose_plan
from service.client import DEFAULT_URL, Graft, Json, wait_until_ready
from service.embedded import embedded

MODEL = "demo"
_BATCH_IMAGES = 32

console = Console()


def demo(
    data: Annotated[str, typer.Option(envvar="DATA", help="Archive of labelled images.")] = "",
    catalog: Annotated[str, typer.Option(envvar="CATALOG", help="Weights catalogue file.")] = "",
    backbone: Annotated[str, typer.Option(envvar="BACKBONE")] = "mobilenet_v2",
    assets: Annotated[
        Path, typer.Option(envvar="GRAFT_DEMO_ASSETS", help="Folder of photographs and weights.")
    ] = Path("../shared"),
) -> None:
    """Start the service, upload photographs, fine-tune, predict held-out images, and stop."""
    with tempfile.TemporaryDirectory(prefix="graft-demo-") as folder:
        plan = choose_plan(Path(folder), data, catalog, backbone, assets)
        console.print(plan.story)
        with embedded(Path(folder) / "data", plan.catalogues) as url, Graft(url) as graft:
            with console.status("starting the service"):
                wait_until_ready(graft)
            _run(graft, plan)


def _run(graft: Graft, plan: DemoPlan) -> None:
    started = time.monotonic()
    dataset = upload_with_bar(graft, plan.archive, MODEL)
    uploaded = time.monotonic()
    fields: Json = {"model": MODEL, "backbone": plan.backbone, "recipe": plan.recipe}
    job = graft.submit(dataset["id"], parameters=plan.parameters, **fields)
    job = follow_job(graft, job["id"])
    served = time.monotonic()
    right, total, shown = _predict_held_out(graft, plan, dataset)
    predicted = time.monotonic()

    table = Table("step", "result", "seconds")
    train, held_out = (
        dataset["splits"].get(split, {"images": 0})["images"] for split in ("train", "val")
    )
    classes = ", ".join(dataset["classes"])
    table.add_row(
        "upload", f"{train} train + {held_out} val images of {classes}", f"{uploaded - started:.1f}"
    )
    reported = job["metrics"]["val/accuracy_top1"]
    table.add_row(
        f"fine-tune ({plan.recipe})",
        f"{plan.backbone}, weights {_weights_of(job)}: val accuracy {reported:.4f}",
        f"{served - uploaded:.1f}",
    )
    table.add_row(
        "predict", f"{right} of {total} held-out images right: {right / total:.4f}",
        f"{predicted - served:.1f}",
    )  # fmt: skip
    console.print(table)
    images = Table("held-out image", "is", "predicted", "score")
    for path, truth, item in shown:
        images.add_row(path, truth, item["label"], f"{item['score']:.3f}")
    console.print(images)
    console.print(_curl_lines(plan), markup=False, highlight=False, soft_wrap=True)


def _predict_held_out(
    graft: Graft, plan: DemoPlan, dataset: Json
) -> tuple[int, int, list[tuple[str, str, Json]]]:
    """Predict every val image over HTTP; return counts and a few to show."""
    held_out = graft.images(dataset["id"], split="val")
    originals = _originals(plan.archive, {item["path"] for item in held_out})
    right, results = 0, []
    for start in range(0, len(held_out), _BATCH_IMAGES):
        batch = held_out[start : start + _BATCH_IMAGES]
        answer = graft.predict(MODEL, *[originals[item["path"]] for item in batch], top_k=1)
        for item, prediction in zip(batch, answer["predictions"], strict=True):
            right += prediction["label"] == item["label"]
            results.append((item["path"], item["label"], prediction))
    wrong = [result for result in results if result[2]["label"] != result[1]]
    step = max(1, len(results) // 4)
    return right, len(results), [*results[::step][:4], *wrong[:3]]


def _originals(archive: Path, paths: set[str]) -> dict[str, bytes]:
    """Return files of an archive as they were uploaded."""
    return {
        entry.name: b"".join(content)
        for entry, content in read_archive(archive, IngestLimits())
        if entry.name in paths
    }


def _weights_of(job: Json) -> str:
    weights = job["resolved"]["weights"]
    return "random" if weights is None else str(weights["name"])


def _curl_lines(plan: DemoPlan) -> str:
    body = {"dataset": "ds_...", "backbone": plan.backbone, "recipe": plan.recipe, "model": MODEL}
    return f"""\
The same by hand, in another terminal while `make run` serves:

  curl --data-binary @{plan.archive} "{DEFAULT_URL}/v1/datasets?name={MODEL}"
  curl --json '{json.dumps(body)}' -H 'Prefer: wait=60' {DEFAULT_URL}/v1/jobs
  curl --data-binary @photo.jpg "{DEFAULT_URL}/v1/models/{MODEL}/predict?top_k=1"
"""
