"""Throughput of Graft's fine-tuning loop, against a bare loop over tensors in memory.

    python benchmarks/step_overhead.py --archive hymenoptera.zip [--json PATH]

Both train the same network from random weights with the same batches, precision and optimizer,
turn and turn about in one process. The bare loop's images are float tensors, normalised and in
channels-last order, made before the clock starts: forward, loss, backward, step, nothing else.
Ours reads packed pixels, crops, flips, resizes and normalises them, sets learning rates, checks
loss and gradient and reports progress, once for each kind of augmentation and option asked for.
On a CUDA device the bare loop also runs with what might be faster there, and with our habits.

Prints the ratios and writes them as JSON. Needs torch, torchvision, numpy, safetensors, pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import numpy as np  # noqa: E402 - after the path
import torch  # noqa: E402
from cuda_candidates import compiled_network, recorded_network  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jobs.datasets.loading import LoadedDataset, load_dataset  # noqa: E402
from jobs.datasets.manifest import LabelledImage, build_manifest  # noqa: E402
from jobs.executors.local import TRAINING_ENVIRONMENT  # noqa: E402
from jobs.recipes import FinetuneRecipe  # noqa: E402
from jobs.tasks.classification import Classification  # noqa: E402
from jobs.training.averaging import WeightAverage  # noqa: E402
from jobs.training.device import set_up, training_dtype  # noqa: E402
from jobs.training.interruption import Interruption  # noqa: E402
from jobs.training.loop import Surroundings, TrainingData, fine_tune  # noqa: E402
from jobs.training.loss_scale import LossScale  # noqa: E402
from jobs.training.optimizer import build_optimizer, prepare_modules  # noqa: E402
from jobs.training.state import TrainingState  # noqa: E402
from models_cache.backbones import build_classifier  # noqa: E402
from models_cache.blobs import BlobStore  # noqa: E402
from models_cache.devices import choose_device  # noqa: E402
from models_cache.pixels import PixelCache, PixelKey  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402

_CLASSES = ("ants", "bees")
_VARIANTS: dict[str, dict[str, Any]] = {
    "crop": {},
    "trivialaugment": {"augmentation": "trivialaugment"},
    "crop, averaged weights": {"ema_decay": 0.99},
}


@dataclass(frozen=True)
class _Bare:
    """A way to run the bare loop.

    Args:
        network: Makes of a model and a batch what is run.
        fused: Whether AdamW is one kernel.
        looks: Whether each loss is looked at, as ours does, which waits for the card.
        deterministic: Whether sums have one order, as in ours.
    """

    network: Callable[[nn.Module, Tensor], nn.Module] = lambda model, _batch: model
    fused: bool = False
    looks: bool = False
    deterministic: bool = True


#: What might be faster on a CUDA device, and what our habits cost there
_CANDIDATES = {
    "bare, a look at each loss": _Bare(looks=True),
    "bare, sums in any order": _Bare(deterministic=False),
    "bare, fused AdamW": _Bare(fused=True),
    "bare, torch.compile": _Bare(lambda model, _batch: compiled_network(model)),
    "bare, CUDA graphs": _Bare(recorded_network),
}


class _Clock:
    """Takes what the loop reports; knows when each step ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def progress(self, unit: str, done: int, _total: int | None) -> None:
        if unit == "steps" and done == len(self.ended) + 1:  # said again between epochs, and at 0
            self.ended.append(time.perf_counter())

    def metrics(self, step: int, metrics: dict[str, float], epoch: float | None = None) -> None:
        pass

    def warning(self, code: str, message: str) -> None:
        raise RuntimeError(f"{code}: {message}")

    def log(self, message: str) -> None:
        pass


def main() -> None:
    """Run both by turns, print the ratios, write the JSON."""
    options = _parse_options()
    run_as_trainings_do()
    device = choose_device(options.device)
    numerics = set_up(device, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(Path(folder), options)
        bare = {"bare": _Bare(), **(_CANDIDATES if device.type == "cuda" else {})}
        steps: dict[str, list[float]] = {name: [] for name in (*bare, *_VARIANTS)}
        for turn in range(options.rounds + 1):
            for name in steps:
                if name in bare:
                    seconds = _bare(bare[name], options, device)
                else:
                    seconds = ours(_VARIANTS[name], dataset, options)
                if turn:  # the first turn warms up
                    steps[name] += seconds
    # What else the machine does only ever adds to a step: the fastest show the loops themselves
    fastest = {name: min(seconds) for name, seconds in steps.items()}
    median = {name: statistics.median(seconds) for name, seconds in steps.items()}
    report = {
        "device": numerics.device,
        "architecture": options.architecture,
        "batch_size": options.batch_size,
        "training_dtype": numerics.training_dtype,
        "machine": {"cpus": os.cpu_count(), "threads": numerics.threads, "torch": numerics.torch},
        "steps_of_each": len(steps["bare"]),
        "fastest_step_seconds": {name: round(value, 4) for name, value in fastest.items()},
        "throughput_to_bare_loop": {
            "fastest steps": _ratios(fastest),
            "median steps": _ratios(median),
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def run_as_trainings_do() -> None:
    """Start this program again if its environment is not that of the service's trainings."""
    if any(os.environ.get(name) != value for name, value in TRAINING_ENVIRONMENT.items()):
        environment = {**os.environ, **TRAINING_ENVIRONMENT}  # C libraries read it when loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606 - ourselves


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds["bare"] / value, 3) for name, value in seconds.items()}


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    return parser.parse_args()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the command line say what is trained, and how long."""
    parser.add_argument("--archive", type=Path, required=True, help="a zip of train/<class>/")
    parser.add_argument("--architecture", default="mobilenet_v2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="of one turn, after a first one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="where the figures are written")


def load(folder: Path, options: argparse.Namespace) -> LoadedDataset:
    """Decode as many images as the steps of one turn need."""
    blobs, images = BlobStore(folder / "blobs"), []
    count = options.batch_size * (options.steps + 1)
    with zipfile.ZipFile(options.archive) as archive:  # a file of ours, not an upload
        names = [n for n in archive.namelist() if "train/" in n and n.endswith(".jpg")]
        for index in range(count):
            name = names[index % len(names)]
            data = archive.read(name)
            sha256 = blobs.put_bytes(data).sha256
            label = next(each for each in _CLASSES if f"/{each}/" in name)
            path = f"{index}.jpg"
            images.append(LabelledImage(sha256, len(data), path, 1, 1, "train", label))
    manifest = build_manifest(images, _CLASSES)
    key = PixelKey(manifest.digest, Preprocessing().resize_px, Preprocessing().interpolation)
    cache = PixelCache(folder / "pixels")
    return load_dataset(blobs, cache, manifest, key, options.threads, lambda _done, _total: None)


def _dtype(device: torch.device) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, training_dtype(device))
    return dtype


def _state(recipe: FinetuneRecipe, architecture: str, device: torch.device) -> TrainingState:
    torch.manual_seed(0)
    model = build_classifier(architecture, len(_CLASSES))
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, recipe)
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    # Compared already: the clock is for steps, not for evaluation
    scale = LossScale.needed_for(_dtype(device))
    return TrainingState(model, optimizer, average, scale, compared_step=0)


def _recipe(options: argparse.Namespace, **different: object) -> FinetuneRecipe:
    values = {"epochs": 1, "tune": 10_000, "batch_norm": "eval", "class_weights": "none"}
    return FinetuneRecipe(batch_size=options.batch_size, **{**values, **different})


def _bare(way: _Bare, options: argparse.Namespace, device: torch.device) -> list[float]:
    """Return the seconds of each step of the bare loop but the first."""
    dtype, recipe = _dtype(device), _recipe(options)
    state = _state(recipe, options.architecture, device)
    prepare_modules(state.model, recipe)
    crop_px = Preprocessing().crop_px
    batches = [
        torch.randn(options.batch_size, crop_px, crop_px, 3, device=device).permute(0, 3, 1, 2)
        for _ in range(2)
    ]
    targets = torch.arange(options.batch_size, device=device) % len(_CLASSES)
    optimizer, network = state.optimizer, way.network(state.model, batches[0])
    if way.fused:
        optimizer = torch.optim.AdamW(optimizer.param_groups, fused=True)
    torch.use_deterministic_algorithms(way.deterministic, warn_only=True)
    ended = []
    for step in range(options.steps + 1):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(batches[step % 2])
        loss = functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if way.looks:
            loss.item()
        if device.type == "cuda" and step in (0, options.steps):
            torch.cuda.synchronize(device)  # between these the card is told ahead of time
        ended.append(time.perf_counter())
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    return _between(ended, device)


def ours(
    changes: dict[str, Any],
    dataset: LoadedDataset,
    options: argparse.Namespace,
    activations: Path | None = None,
) -> list[float]:
    """Return the seconds of each step but the first of fine-tuning's loop.

    Args:
        changes: Parameters that differ from the recipe's defaults.
        dataset: What is learned from.
        options: Network, device and batch size.
        activations: Where those of frozen stages are kept; None to compute them in each epoch.
    """
    device = choose_device(options.device)
    dtype = _dtype(device)
    recipe, clock = _recipe(options, **changes), _Clock()
    state = _state(recipe, options.architecture, device)
    data = TrainingData(
        dataset, dataset.indices("train"), np.array([0], dtype=np.int64), Preprocessing()
    )
    around = Surroundings(
        0, dtype, clock, Interruption(None), lambda _state: None, activations_folder=activations
    )
    fine_tune(state, Classification(_CLASSES), data, recipe, around)
    return _between(clock.ended, device)


def _between(ended: list[float], device: torch.device) -> list[float]:
    """Return the seconds of each step; on a card, which works behind us, their mean."""
    if device.type == "cuda":
        return [(ended[-1] - ended[0]) / (len(ended) - 1)]
    return [after - before for before, after in pairwise(ended)]


if __name__ == "__main__":
    main()
