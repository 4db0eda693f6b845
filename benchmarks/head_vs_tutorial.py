"""How long from photographs to a fitted model, against one epoch of PyTorch's tutorial loop.

    python benchmarks/head_vs_tutorial.py --archive hymenoptera.zip --weights WEIGHTS_FOLDER

In one run on one machine, each in processes of its own:

- one epoch (train and val phase) of the loop of PyTorch's transfer-learning tutorial: image
  folders, random resized crop, a loader with workers, SGD on the whole network, batches of 4;
- Graft's ingest child and its training child with recipe `head`, cold (decoding, the feature
  pass, imports and process starts included), then a second job on the same images, whose
  features are cached.

Prints the ratios and writes them as JSON. Needs torch, torchvision, numpy, safetensors, pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY))

import torch  # noqa: E402 - after the path
from torch import nn  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from jobs.executors.local import TRAINING_ENVIRONMENT  # noqa: E402
from jobs.progress import FILE_NAME, read_progress  # noqa: E402
from models_cache.backbones import build_classifier  # noqa: E402
from models_cache.blobs import BlobStore  # noqa: E402

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Run both, print the ratios, write the JSON."""
    options = parse_options()
    if options.tutorial_epoch is not None:  # we are the tutorial's own process
        tutorial_epoch(options.tutorial_epoch, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        report: dict[str, Any] = {
            "machine": machine(options),
            "architecture": options.architecture,
            "tutorial_epoch": timed_tutorial(work, options),
        }
        manifest = timed_ingest(work, options, report)
        for name in ("cold", "features_cached"):
            report[f"head_{name}"] = _timed_head(work, options, manifest, name)
    epoch = report["tutorial_epoch"]["seconds"]
    ingest = report["ingest"]["seconds"]
    cold, cached = (report[f"head_{n}"]["seconds"] for n in ("cold", "features_cached"))
    report["ratios"] = {
        "upload_to_model_per_epoch": round((ingest + cold) / epoch, 4),
        "head_cold_per_epoch": round(cold / epoch, 4),
        "head_features_cached_per_epoch": round(cached / epoch, 4),
        "head_features_cached_without_imports_per_epoch": round(
            report["head_features_cached"]["seconds_after_imports"] / epoch, 4
        ),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def parse_options() -> argparse.Namespace:
    """Return what the command line says; both benchmarks against the tutorial take the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--archive", type=Path, required=True, help="a zip of train/ and val/")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with catalog.json")
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=4, help="of the tutorial's loader")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--tutorial-epoch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what figures are of: the processors, the card if there is one, and torch."""
    device = torch.device(options.device)
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "torch": torch.__version__}
    if device.type == "cuda":
        facts["card"] = torch.cuda.get_device_name(device)
    return facts


def _timed(run: Callable[[], subprocess.CompletedProcess[bytes]]) -> float:
    started = time.monotonic()
    run().check_returncode()
    return round(time.monotonic() - started, 3)


def timed_tutorial(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one epoch of the tutorial in a process of its own and return its figures."""
    folder = work / "extracted"
    with zipfile.ZipFile(options.archive) as archive:  # a file of ours, not an upload
        archive.extractall(folder)
    (train,) = [path for path in folder.rglob("train") if path.is_dir()]
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--tutorial-epoch", str(train.parent)]
    ended = subprocess.run(command, capture_output=True, check=True)
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def tutorial_epoch(folder: Path, options: argparse.Namespace) -> None:
    """One epoch of the tutorial's `train_model`, the whole network learning.

    Source: pytorch.org/tutorials/beginner/transfer_learning_tutorial.html (transforms, batch
    size, optimizer, order of phases), with the network of `--architecture` for its resnet18.
    """
    torch.set_num_threads(options.threads)
    normalise = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise]
    centre = [transforms.Resize(256), transforms.CenterCrop(224), *normalise]
    images = {
        "train": datasets.ImageFolder(str(folder / "train"), transforms.Compose(augment)),
        "val": datasets.ImageFolder(str(folder / "val"), transforms.Compose(centre)),
    }
    loaders = {
        split: torch.utils.data.DataLoader(
            images[split], batch_size=4, shuffle=True, num_workers=options.workers
        )
        for split in images
    }
    device = torch.device(options.device)
    model = build_classifier(options.architecture, len(images["train"].classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    started = time.monotonic()
    seconds = {}
    for split in ("train", "val"):
        model.train(split == "train")
        running_loss, running_corrects = 0.0, 0.0
        for batch in loaders[split]:
            inputs, labels = (part.to(device) for part in batch)
            optimizer.zero_grad()
            with torch.set_grad_enabled(split == "train"):
                outputs = model(inputs)
                _, predictions = torch.max(outputs, 1)
                loss = criterion(outputs, labels)
                if split == "train":
                    loss.backward()
                    optimizer.step()
            running_loss += loss.item() * inputs.size(0)
            running_corrects += float(torch.sum(predictions == labels))
        seconds[split] = round(time.monotonic() - started, 3)
    figures = {
        "seconds": seconds["val"],
        "train_phase_seconds": seconds["train"],
        "images": {split: len(images[split]) for split in images},
        "batch_size": 4,
        "workers": options.workers,
        "threads": options.threads,
    }
    print(json.dumps(figures))


def run_child(work: Path, module: str, name: str, spec: dict[str, Any]) -> tuple[float, list[Any]]:
    """Run a child to its end; return its seconds and its progress lines."""
    attempt = work / "runs" / name / "1"
    attempt.mkdir(parents=True)
    common = {
        "job_id": name,
        "attempt": 1,
        "attempt_folder": str(attempt),
        "run_folder": str(attempt.parent),
        "data_folder": str(work),
        "parent_pid": os.getpid(),
        "faults": "",
        "faults_folder": str(work / "faults"),
    }
    path = attempt / "spec.json"
    path.write_text(json.dumps({**common, **spec}))
    environment = {**os.environ, **TRAINING_ENVIRONMENT}
    command = [sys.executable, "-m", module, str(path)]
    seconds = _timed(lambda: subprocess.run(command, cwd=_REPOSITORY, env=environment, check=True))
    lines, _ = read_progress(attempt / FILE_NAME, 0)
    if lines[-1]["kind"] != "result":
        sys.exit(f"{module} did not succeed: {lines[-1]}")
    return seconds, lines


def timed_ingest(work: Path, options: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """Ingest the archive, note the seconds in the report, and return the dataset."""
    archive = BlobStore(work / "blobs").put_bytes(options.archive.read_bytes())
    spec: dict[str, Any] = {
        "kind": "ingest",
        "archive_sha256": archive.sha256,
        "parent_manifest_sha256": None,
        "limits": {},
        "resize_px": 256,
        "interpolation": "bilinear",
    }
    seconds, lines = run_child(work, "jobs.datasets.ingest", "ingest", spec)
    report["ingest"] = {"seconds": seconds}
    dataset: dict[str, Any] = lines[-1]["dataset"]
    return dataset


def job_spec(options: argparse.Namespace, dataset: dict[str, Any], recipe: str) -> dict[str, Any]:
    """Return what a training child is told, with the defaults of the recipe."""
    return {
        "kind": "fine_tune",
        "dataset": {"id": "ds", **{key: dataset[key] for key in ("manifest_sha256", "digest")}},
        "architecture": options.architecture,
        "weights": "DEFAULT",
        "recipe": recipe,
        "parameters": {},
        "seed": 0,
        "weights_sources": [str(options.weights)],
        "weights_catalogues": [str(options.weights / "catalog.json")],
        "offline": True,
        "device": options.device,
        "threads": options.threads,
        "time_limit_seconds": None,
        "lineage": {"job_id": "benchmark"},
    }


def _timed_head(
    work: Path, options: argparse.Namespace, dataset: dict[str, Any], name: str
) -> dict[str, Any]:
    spec = job_spec(options, dataset, "head")
    seconds, lines = run_child(work, "jobs.run", name, spec)
    first, last = (unix_seconds(line["at"]) for line in (lines[0], lines[-1]))
    return {
        "seconds": seconds,
        # With the worker's warm fork server a job begins behind the imports.
        "seconds_after_imports": round(last - first, 3),
        "metrics": lines[-1]["metrics"],
    }


def unix_seconds(at: str) -> float:
    """Return the Unix time of a line of progress."""
    return datetime.fromisoformat(at).timestamp()


if __name__ == "__main__":
    main()
