"""Fine-tuning against fastai: the same weights file, images, split, epochs and batch size.

    python benchmarks/finetune_vs_fastai.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER \
        --environment FOLDER

- fastai: `vision_learner(...).fine_tune(epochs)` with `aug_transforms()`, the idiom of its
  documentation: one epoch of the head, then so many of the whole network. It runs in a virtual
  environment of its own, which is made in FOLDER unless it is there (several GB).
- Graft: the ingest child (decoding included) and the training child with recipe `finetune`: the
  head on cached features, then so many epochs of the whole network.

Both are timed behind their imports, from the first look at the images to the val accuracy. Graft
publishes the best epoch by the val images, fastai the last one: for both the last is told too.
Prints the ratios of one run; `--json FILE` writes them. Networks whose layers before the classifier
are `features`, such as mobilenet_v2 and squeezenet1_1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import head_vs_tutorial as tutorial  # noqa: E402 - after the path
import torch  # noqa: E402
import torchvision  # noqa: E402

from jobs.metrics_files import points_of  # noqa: E402

_FASTAI = "fastai==2.8.*"  # the newest; takes the torch that Graft takes
_ACCURACY = "val/accuracy_top1"


def main() -> None:
    """Run both, print the ratios, write the JSON."""
    options = _parse_options()
    python = _environment(options.environment)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fastai = _timed_fastai(work, python, options)
        graft = _timed_graft(work, options)
    report: dict[str, Any] = {
        "machine": tutorial.machine(options),
        "architecture": options.architecture,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "fastai": fastai,
        "graft": graft,
        "ratios": {
            "job_per_fastai": round(graft["job_seconds"] / fastai["seconds"], 3),
            "ingest_and_job_per_fastai": round(
                (graft["ingest_seconds"] + graft["job_seconds"]) / fastai["seconds"], 3
            ),
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def _environment(folder: Path) -> Path:
    """Return the interpreter of fastai's environment, which is made if it is not there."""
    python = folder.absolute() / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # Does nothing where it is installed; ends what an interrupted run began.
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", _FASTAI], check=True)
    return python


def _timed_fastai(work: Path, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    images = work / "extracted"
    with zipfile.ZipFile(options.archive) as archive:  # a file of ours, not an upload
        archive.extractall(images)
    (train,) = [path for path in images.rglob("train") if path.is_dir()]
    spec = {
        "images": str(train.parent),
        "architecture": options.architecture,
        "weights_file": str(_weights_file(options)),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "device": options.device,
        "threads": options.threads,
        "workers": options.workers,
        "seed": options.seed,
    }
    path = work / "fastai.json"
    path.write_text(json.dumps(spec))
    child = Path(__file__).with_name("fastai_child.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(
        [str(python), str(child), str(path)], stdout=subprocess.PIPE, env=environment, check=True
    )
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def _weights_file(options: argparse.Namespace) -> Path:
    catalogue = json.loads((options.weights / "catalog.json").read_text())
    (entry,) = [w for w in catalogue["weights"] if w["architecture"] == options.architecture]
    return (options.weights / entry["file"]).absolute()


def _timed_graft(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {}
    dataset = tutorial.timed_ingest(work, options, report)
    return {"ingest_seconds": report["ingest"]["seconds"], **timed_job(work, options, dataset)}


def timed_job(work: Path, options: argparse.Namespace, dataset: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune in a child, and return its seconds behind the imports and its accuracy."""
    spec = {
        **tutorial.job_spec(options, dataset, "finetune"),
        "parameters": {"epochs": options.epochs, "batch_size": options.batch_size},
        "seed": options.seed,
    }
    _, lines = tutorial.run_child(work, "jobs.run", f"finetune-{options.device}", spec)
    at = tutorial.unix_seconds
    begun = [(line["phase"], at(line["at"])) for line in lines if line["kind"] == "phase"]
    begun.append(("end", at(lines[-1]["at"])))
    epochs = [p.figures[_ACCURACY] for p in points_of(lines) if _ACCURACY in p.figures]
    versions = {module.__name__: module.__version__ for module in (torch, torchvision)}
    return {
        "job_seconds": round(begun[-1][1] - at(lines[0]["at"]), 3),
        "phases": {name: round(end - start, 3) for (name, start), (_, end) in pairwise(begun)},
        "val_accuracy": round(lines[-1]["metrics"][_ACCURACY], 4),
        "val_accuracy_by_epoch": [round(value, 4) for value in epochs],
        "versions": versions,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a fine-tuning is about."""
    parser.add_argument("--archive", type=Path, required=True, help="a zip of train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with catalog.json")
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures are written")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<n>, of both")
    parser.add_argument("--environment", type=Path, required=True, help="folder of fastai's")
    parser.add_argument("--workers", type=int, default=2, help="of fastai's loaders")
    return parser.parse_args()


if __name__ == "__main__":
    main()
