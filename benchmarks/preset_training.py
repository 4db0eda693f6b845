"""One training of `preset_tables.py`: sets of photographs, a run in-process, and its figures.

What a training is compared on is written down after each epoch, also for each half of the held-out
images. So a table can choose the epoch on one half and judge it on the other: a figure without the
luck of the choice. Averages of the weights that change nothing in the training (moving ones, and
that of the best epochs) are judged beside it, in the same run.
"""

from __future__ import annotations

import itertools
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.datasets.manifest import LabelledImage, build_manifest
from jobs.memory import peak_bytes_of_process
from jobs.recipes import FinetuneRecipe, HeadRecipe, RecipeFacts, ScratchRecipe, resolve
from jobs.tasks.classification import Classification
from jobs.training.averaging import WeightAverage
from jobs.training.evaluate import predict_logits
from jobs.training.head import fit_head
from jobs.training.interruption import Interruption
from jobs.training.loop import Surroundings, TrainingData, fine_tune
from jobs.training.optimizer import build_optimizer
from jobs.training.state import TrainingState
from models_cache.backbones import (
    Classifier,
    build_backbone,
    feature_width,
    has_batch_norm,
    parameter_groups_in_depth_order,
)
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.engines import EAGER, Engine, extract_features
from models_cache.features import freeze, normalised
from models_cache.pixels import PixelCache, PixelKey
from models_cache.preprocessing import Preprocessing

EMA_DECAY = 0.9  # of the average judged beside a training without one
BEST_EPOCHS = 3  # whose weights are averaged
_CPU = torch.device("cpu")
_NEVER = 1 << 30


@dataclass(frozen=True)
class Setting:
    """What is learned from.

    Args:
        photographs: `insects`, or `three`: with pedestrians as a third class.
        backbone: Architecture, with the weights of the folder.
        per_class: Training images of each class, drawn with the seed; None for all.
    """

    photographs: str
    backbone: str
    per_class: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """A short name for tables and records."""
        drawn = "" if self.per_class is None else f", {':'.join(map(str, self.per_class))}"
        return f"{self.photographs}, {self.backbone}{drawn}"


@dataclass(frozen=True)
class Sources:
    """Where photographs and weights are, and where what is made of them is kept."""

    insects: Path
    persons: Path
    weights: Path
    work: Path
    threads: int


class _Watched(Classification):
    """Classification that remembers the logits of every comparison."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.compared: list[Tensor] = []

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, float]:
        self.compared.append(logits)
        return super().metrics(logits, targets)


class _Beside:
    """Takes what the loop reports, and keeps an average of the weights beside the training."""

    def __init__(self, model: Classifier) -> None:
        self.average = WeightAverage(model, EMA_DECAY)
        self._step = 0

    def progress(self, unit: str, done: int, _total: int | None) -> None:
        if unit == "steps" and done > self._step:
            self._step = done
            self.average.update(done)

    def metrics(self, step: int, metrics: dict[str, float], epoch: float | None = None) -> None:
        pass

    def warning(self, code: str, message: str) -> None:
        raise RuntimeError(f"{code}: {message}")

    def log(self, message: str) -> None:
        pass


def run(
    setting: Setting, recipe_name: str, parameters: dict[str, Any], seed: int, sources: Sources,
    *, averages: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train once and return the figures of every epoch, JSON-ready.

    Args:
        setting: What is learned from.
        recipe_name: `finetune`, `head` or `scratch`.
        parameters: What differs from the recipe's defaults.
        seed: Of the training and of the draw of images.
        sources: Files.
        averages: Whether averages of the weights are judged too.
    """
    preprocessing, backbone = _backbone(setting.backbone, recipe_name, seed, sources)
    dataset = _load(setting.photographs, preprocessing, sources)
    train = _drawn(dataset, setting.per_class, seed)
    held_out = dataset.indices("val")
    targets = dataset.labels[torch.from_numpy(held_out)]
    counts = torch.bincount(dataset.labels[torch.from_numpy(train)])
    facts = RecipeFacts(
        train_images=len(train),
        stages=len(parameter_groups_in_depth_order(backbone)),
        has_batch_norm=has_batch_norm(backbone),
        imbalance=float(counts.max() / counts.min()),
    )
    recipe = resolve(recipe_name, parameters, facts)
    task = _Watched(dataset.manifest.classes)
    model = Classifier(backbone, feature_width(setting.backbone), len(task.classes))
    if not isinstance(recipe, ScratchRecipe):
        features = _features(setting, backbone, dataset, preprocessing, sources)
        model.head.load_state_dict(_head(features, dataset, train, recipe).state_dict())
    started = time.monotonic()
    record: dict[str, Any] = {"images": len(train)}
    if isinstance(recipe, HeadRecipe):
        with torch.inference_mode():
            task.compared.append(model.head(features[torch.from_numpy(held_out)]))
    else:
        data = TrainingData(dataset, train, held_out, preprocessing)
        trained = _Run(model, task, data, recipe, seed, sources)
        record |= trained.figures(averages)
        record |= {"epochs": recipe.epochs, "batch_size": recipe.batch_size}
    record["curve"] = [_figures(logits, targets) for logits in task.compared]
    record["seconds"] = round(time.monotonic() - started, 1)
    record["peak_bytes"] = peak_bytes_of_process()
    return record


@dataclass(frozen=True)
class _Run:
    """One training of a network and what is judged beside it."""

    model: Classifier
    task: _Watched
    data: TrainingData
    recipe: FinetuneRecipe | ScratchRecipe
    seed: int
    sources: Sources

    def figures(self, averages: bool) -> dict[str, Any]:
        """Train; return the curve of the moving average and the figures of averaged epochs."""
        optimizer = build_optimizer(self.model, self.recipe)
        state = TrainingState(self.model, optimizer)
        beside = _Beside(self.model)
        moving: list[dict[str, Any]] = []
        epochs: list[dict[str, Tensor]] = []

        def judge(_state: TrainingState) -> None:
            if averages:
                beside.average.exchange()
                moving.append(self._judged())
                beside.average.exchange()
                values = self.model.state_dict().items()
                epochs.append({name: value.detach().clone() for name, value in values})

        folder = self.sources.work / "activations"
        around = Surroundings(
            self.seed, torch.float32, beside, Interruption(None), judge, _NEVER, folder
        )
        fine_tune(state, self.task, self.data, self.recipe, around)
        return {"ema": moving, **self._best_epochs(epochs)} if averages else {}

    def _best_epochs(self, epochs: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Return figures of the mean of the best epochs' weights, chosen by all and by halves."""
        compared = self.task.compared[-len(epochs) :]
        targets = self._targets()
        curve = [_figures(logits, targets) for logits in compared]
        plain: dict[tuple[int, ...], Any] = {}
        measured_again: dict[tuple[int, ...], Any] = {}
        chosen_by = {}
        for chooser in ("all", "first half", "second half"):
            order = sorted(range(1, len(curve)), key=lambda i: curve[i][chooser]["loss"])
            chosen = chosen_by[chooser] = tuple(sorted(order[:BEST_EPOCHS]))
            if chosen in plain:
                continue
            self.model.load_state_dict(
                {n: torch.stack([epochs[i][n].double() for i in chosen]).mean(0) for n in epochs[0]}
            )
            plain[chosen] = self._judged()
            if has_batch_norm(self.model):
                self._measure_batch_norm()
                measured_again[chosen] = self._judged()
        rows = {"best epochs": plain, "best epochs, BatchNorm again": measured_again}
        return {
            name: {chooser: figures[chosen] for chooser, chosen in chosen_by.items()}
            for name, figures in rows.items()
            if figures
        }

    def _measure_batch_norm(self) -> None:
        """Take BatchNorm's statistics from the training images, all with the same weight."""
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # a plain mean over the batches
                module.train()
        crop_px = self.data.preprocessing.crop_px
        with torch.inference_mode():
            for start in range(0, len(self.data.train), self.recipe.batch_size):
                some = self.data.train[start : start + self.recipe.batch_size]
                pixels = self.data.dataset.center_crops(some, crop_px)
                self.model(normalised(pixels, self.data.preprocessing))

    def _judged(self) -> dict[str, Any]:
        data, size = self.data, self.recipe.batch_size
        found = predict_logits(self.model, data.dataset, data.held_out, data.preprocessing, size)
        return _figures(found, self._targets())

    def _targets(self) -> Tensor:
        return self.data.targets(self.data.held_out)


def _figures(logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return accuracy, macro recall and loss of all held-out images and of each half."""
    half = _half(targets)
    parts = {"all": half >= 0, "first half": half == 0, "second half": half == 1}
    return {name: _of_part(logits[part], targets[part]) for name, part in parts.items()}


def _half(targets: Tensor) -> Tensor:
    """Return the half of each image, 0 or 1, int64 `[N]`: by turns within its class."""
    turns = [itertools.count() for _ in range(int(targets.max()) + 1)]
    return torch.tensor([next(turns[target]) % 2 for target in targets.tolist()])


def _of_part(logits: Tensor, targets: Tensor) -> dict[str, float]:
    right = (logits.argmax(dim=1) == targets).double()
    recalls = [right[targets == c].mean() for c in range(int(targets.max()) + 1)]
    return {
        "accuracy": round(float(right.mean()), 5),
        "recall": round(float(torch.stack(recalls).mean()), 5),
        "loss": round(float(nn.functional.cross_entropy(logits.double(), targets)), 5),
    }


def _backbone(
    architecture: str, recipe_name: str, seed: int, sources: Sources
) -> tuple[Preprocessing, nn.Module]:
    if recipe_name == "scratch":
        torch.manual_seed(seed)
        return Preprocessing(), freeze(build_backbone(architecture), _CPU)
    catalogue = Catalogue.load(extra_files=[sources.weights / "catalog.json"])
    candidates = catalogue.candidates(architecture, "DEFAULT", have=lambda _info: False)
    info = next(info for info in candidates if (sources.weights / info.file).is_file())
    path = sources.weights / info.file
    module = build_backbone(architecture, weights_path=path, has_head=info.has_head)
    return info.preprocessing, freeze(module, _CPU)


def _features(
    setting: Setting, backbone: nn.Module, dataset: LoadedDataset,
    preprocessing: Preprocessing, sources: Sources,
) -> Tensor:  # fmt: skip
    """Return the features of all images, float32 `[N, D]`, computed once per set and backbone."""
    path = sources.work / f"features-{setting.photographs}-{setting.backbone}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept

    def crops() -> Iterator[Tensor]:
        count = len(dataset.manifest.images)
        for start in range(0, count, 32):
            yield dataset.center_crops(range(start, min(start + 32, count)), preprocessing.crop_px)

    found = extract_features(Engine.of(EAGER, backbone), crops(), preprocessing, 32)
    torch.save(found, path)
    return found


def _head(
    features: Tensor, dataset: LoadedDataset, train: NDArray[np.int64],
    recipe: HeadRecipe | FinetuneRecipe,
) -> nn.Linear:  # fmt: skip
    chosen = torch.from_numpy(train)
    if isinstance(recipe, FinetuneRecipe):
        recipe = HeadRecipe(class_weights=recipe.class_weights)
    classes = len(dataset.manifest.classes)
    contents = dataset.contents(train)
    return fit_head(features[chosen], dataset.labels[chosen], contents, classes, recipe).head


def _drawn(dataset: LoadedDataset, per_class: Sequence[int] | None, seed: int) -> NDArray[np.int64]:
    """Return the training images, or so many of each class, drawn with the seed."""
    train = dataset.indices("train")
    if per_class is None:
        return train
    labels, draw = dataset.labels.numpy()[train], np.random.default_rng(seed)
    chosen = [
        draw.choice(train[labels == c], count, replace=False) for c, count in enumerate(per_class)
    ]
    return np.sort(np.concatenate(chosen))


def _load(photographs: str, preprocessing: Preprocessing, sources: Sources) -> LoadedDataset:
    """Return all photographs of a set, decoded once into the work folder."""
    blobs, images = BlobStore(sources.work / "blobs"), []
    for data, split, label in _files(photographs, sources):
        blob = blobs.put_bytes(data)
        path = f"{split}/{label}/{blob.sha256}"
        images.append(LabelledImage(blob.sha256, len(data), path, 1, 1, split, label))
    manifest = build_manifest(images, sorted({image.names[0] for image in images}))
    key = PixelKey(manifest.digest, preprocessing.resize_px, preprocessing.interpolation)
    cache = PixelCache(sources.work / "pixels")
    return load_dataset(blobs, cache, manifest, key, sources.threads, lambda _done, _total: None)


def _files(photographs: str, sources: Sources) -> Iterator[tuple[bytes, str, str]]:
    """Yield bytes, split and class of each photograph; five in eight pedestrians are trained on."""
    with zipfile.ZipFile(sources.insects) as archive:  # files of ours, not uploads
        names = sorted(n for n in archive.namelist() if Path(n).suffix in (".jpg", ".jpeg"))
        for name in names:
            split, label = Path(name).parts[-3:-1]
            yield archive.read(name), split, label
    if photographs == "three":
        with zipfile.ZipFile(sources.persons) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".png"))
            pictures = [name for name in names if "/PNGImages/" in name]
            for place, name in enumerate(pictures):
                yield archive.read(name), "train" if place % 8 < 5 else "val", "persons"
