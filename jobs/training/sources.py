"""What an attempt starts from: the pretrained network, the decoded images, and their splits."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.datasets.manifest import TRAIN, VAL, Manifest
from jobs.training.head import assign_folds, strata
from jobs.training.loop import TrainingData
from jobs.training.place import Place
from models_cache.backbones import build_backbone, feature_width
from models_cache.catalogue import Catalogue, WeightsInfo
from models_cache.durable import canonical_json, write_bytes
from models_cache.features import freeze
from models_cache.pixels import PixelKey
from models_cache.preprocessing import Preprocessing
from models_cache.weights import WeightsVault, obtain

SEEN = "train-seen"  # the split's name where epochs are compared on what is learned from
_WEIGHTS_RECORD = "weights.json"  # in the run folder: what the first attempt chose
_HOLDOUT_FOLDS = 5  # without a val split one fold of the training images stands in for it


@dataclass(frozen=True)
class Backbone:
    """A network and where its weights come from.

    Args:
        module: In eval mode, channels-last, on the attempt's device.
        width: Length of its features, D.
        preprocessing: What its weights expect of an image.
        weights: What receipts and artifacts say of the file; None for random weights.
    """

    module: nn.Module
    width: int
    preprocessing: Preprocessing
    weights: dict[str, Any] | None


def fetch_backbone(place: Place) -> Backbone:
    """Phase `weights`: have the verified file, and the network with its values.

    Raises:
        WeightsError: The weights are unknown, cannot be had or do not fit.
    """
    spec = place.spec
    place.begin("weights")
    width = feature_width(spec.architecture)
    if spec.weights is None or spec.recipe == "scratch":
        torch.manual_seed(spec.seed)
        module = build_backbone(spec.architecture)
        return Backbone(freeze(module, place.device), width, Preprocessing(), None)
    vault, info, path = obtain_weights(place)
    module = build_backbone(spec.architecture, weights_path=path, has_head=info.has_head)
    described = {
        "name": info.name,
        "file": info.file,
        "sha256": vault.sha256_of(info),
        "has_head": info.has_head,
        "license": info.license,
        "source": info.source,
    }
    return Backbone(freeze(module, place.device), width, info.preprocessing, described)


def obtain_weights(place: Place) -> tuple[WeightsVault, WeightsInfo, Path]:
    """Return the first of the weights that can be had, and its file; later attempts stay with it.

    What `DEFAULT` means depends on what can be downloaded just now, and a job has one backbone.

    Raises:
        WeightsError: The weights are unknown or cannot be had.
    """
    spec = place.spec
    assert spec.weights is not None
    vault = WeightsVault(
        spec.data_folder / "weights",
        sources=list(spec.weights_sources),
        offline=spec.offline,
        egress=spec.egress,
    )
    catalogue = Catalogue.load(extra_files=spec.weights_catalogues)
    record = spec.run_folder / _WEIGHTS_RECORD
    name = _recorded(record) or spec.weights
    candidates = catalogue.candidates(spec.architecture, name, have=vault.have)

    def report(done_bytes: int, total_bytes: int | None) -> None:
        place.advance("bytes", done_bytes, total_bytes)

    def warn(message: str) -> None:
        place.progress.warning("weights-fallback", message)

    info, path = obtain(vault, candidates, report, warn)
    chosen = {"name": info.name, "sha256": vault.sha256_of(info)}
    if name != info.name or not record.exists():
        write_bytes(record, canonical_json(chosen), point="weights_record")
    return vault, info, path


def _recorded(record: Path) -> str | None:
    """Return the name of the weights that an earlier attempt of the job chose, if any."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(record.read_bytes())["name"])
    return None


def decode_dataset(place: Place, preprocessing: Preprocessing) -> LoadedDataset:
    """Phase `decode`: the images at the size the weights want; instant if ingest packed them."""
    place.begin("decode")
    manifest = Manifest.load(place.blobs, place.spec.manifest_sha256)
    key = PixelKey(manifest.digest, preprocessing.resize_px, preprocessing.interpolation)
    return load_dataset(
        place.blobs, place.pixels, manifest, key, place.numerics.threads,
        lambda done, total: place.advance("images", done, total),
    )  # fmt: skip


def split_dataset(
    place: Place, dataset: LoadedDataset, preprocessing: Preprocessing
) -> TrainingData:
    """Return what is learned from and what candidates are compared on.

    Recipe `head` learns from all training images and, without a val split, is judged by
    cross-validation; a recipe with epochs needs images that it never sees, so one fold of the
    training images is held out.
    """
    train, val = dataset.indices(TRAIN), dataset.indices(VAL)
    if len(val) or place.spec.recipe == "head":
        if not len(val):
            place.progress.warning("no-val-images", "there is no val split: judged out of fold")
        return TrainingData(dataset, train, val, preprocessing)
    held_out = _hold_out(dataset, train)
    if not len(held_out):
        place.progress.warning(
            "no-val-images",
            "there is no val split and no class has two different images: epochs are compared on "
            "the training images",
        )
        return TrainingData(dataset, train, train, preprocessing, held_out_name=SEEN)
    place.progress.warning(
        "no-val-images",
        f"there is no val split: {len(held_out)} of {len(train)} training images are held out",
    )
    learned = train[~np.isin(train, held_out)]
    return TrainingData(dataset, learned, held_out, preprocessing, held_out_name="holdout")


def _hold_out(dataset: LoadedDataset, train: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one fold of the training images, int64 `[H]`; never a class's only distinct image."""
    labels = strata(dataset.labels[torch.from_numpy(train)])
    contents = dataset.contents(train)
    distinct = Counter(label for label, _ in set(zip(labels, contents, strict=True)))
    spare = np.array([distinct[label] > 1 for label in labels], dtype=bool)  # [N]
    if not spare.any():
        return train[:0]
    chosen = train[spare]
    labels = strata(dataset.labels[torch.from_numpy(chosen)])
    folds = assign_folds(labels, dataset.contents(chosen), _HOLDOUT_FOLDS).numpy()
    held_out: NDArray[np.int64] = chosen[folds == 0]
    return held_out
