"""Real photographs on a CUDA device: as good as on the CPU, within noise."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest
from jobs.recipes import HeadRecipe
from jobs.training.head import fit_head
from models_cache.backbones import build_backbone
from models_cache.blobs import BlobStore
from models_cache.classifiers import golden_images
from models_cache.engines import choose_engine, extract_features
from models_cache.features import freeze
from models_cache.pixels import PixelCache, PixelKey
from models_cache.preprocessing import Preprocessing
from tests.training_jobs import TrainingChildren, TrainingJob, training_spec

pytestmark = [pytest.mark.gpu, pytest.mark.shared, pytest.mark.slow]

_ARCHITECTURE = "mobilenet_v2"
_CLASSES = ("ants", "bees")
_BATCH = 32


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def manifest(shared: Path, data_folder: Path) -> Manifest:
    """The 244 and 153 photographs of ants and bees, stored as an upload would be."""
    blobs, images = BlobStore(data_folder / "blobs"), []
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            split = "train" if "/train/" in f"/{name}" else "val"
            (label,) = (each for each in _CLASSES if f"/{each}/" in name)
            data = archive.read(name)
            sha256 = blobs.put_bytes(data).sha256
            images.append(LabelledImage(sha256, len(data), name, 1, 1, split, label))
    made = build_manifest(images, _CLASSES)
    made.store(blobs)
    return made


@pytest.fixture(scope="module")
def photographs(manifest: Manifest, data_folder: Path) -> LoadedDataset:
    blobs, facts = BlobStore(data_folder / "blobs"), Preprocessing()
    key = PixelKey(manifest.digest, facts.resize_px, facts.interpolation)
    cache = PixelCache(data_folder / "cache" / "pixels")
    return load_dataset(blobs, cache, manifest, key, 2, lambda _done, _total: None)


def test_fine_tuning_on_the_gpu_is_as_good_as_on_the_cpu_within_noise(
    cuda: torch.device,
    children: TrainingChildren,
    data_folder: Path,
    manifest: Manifest,
    shared: Path,
) -> None:
    found: dict[str, dict[str, float]] = {}
    for device in ("cpu", str(cuda)):
        spec: dict[str, Any] = training_spec(
            manifest,
            shared / "weights" / "catalog.json",
            architecture=_ARCHITECTURE,
            weights="DEFAULT",
            recipe="finetune",
            parameters={"epochs": 2, "batch_size": _BATCH},
            device=device,
            threads=2,
        )
        job = TrainingJob(data_folder, f"job_{device.partition(':')[0]}", spec)
        assert job.run(children) == 0
        found[device] = job.result()["metrics"]
    on_cpu, on_gpu = found.values()
    # 0.95 of 153 images: the standard error of an accuracy is 0.018
    assert on_gpu["val/accuracy_top1"] == pytest.approx(on_cpu["val/accuracy_top1"], abs=0.036)
    assert on_gpu["val/loss"] == pytest.approx(on_cpu["val/loss"], abs=0.05)


def test_features_in_16_bits_say_the_same_of_photographs(
    cuda: torch.device, photographs: LoadedDataset, shared: Path
) -> None:
    facts = Preprocessing()
    weights = next((shared / "weights").glob(f"{_ARCHITECTURE}-*.pth"))
    module = build_backbone(_ARCHITECTURE, weights_path=weights, has_head=False)
    probe = torch.from_numpy(golden_images(facts.crop_px)).to(cuda)
    engine = choose_engine(freeze(module, cuda), probe, facts)
    labels = photographs.labels
    train = torch.from_numpy(photographs.indices("train"))
    losses, features = [], []
    for dtype in (torch.float32, torch.bfloat16):
        crops = photographs.center_crops(range(len(labels)), facts.crop_px).split(_BATCH)
        found = extract_features(replace(engine, dtype=dtype), crops, facts, _BATCH)
        contents = photographs.contents(train.tolist())
        fit = fit_head(found[train].to(cuda), labels[train], contents, 2, HeadRecipe())
        features.append(found)
        losses.append(fit.out_of_fold_loss)
    similar = torch.cosine_similarity(features[0], features[1], dim=1)
    assert similar.min() > 0.99
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
