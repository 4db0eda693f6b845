"""A network cut where learning begins says what the whole one says, and costs less per epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.recipes import FinetuneRecipe
from jobs.tasks.classification import Classification
from jobs.training import boundary
from jobs.training.interruption import Interruption
from jobs.training.loop import Surroundings, TrainingData, fine_tune
from jobs.training.optimizer import build_optimizer, prepare_modules
from jobs.training.state import TrainingState
from models_cache.backbones import Classifier, build_classifier, parameter_groups_in_depth_order
from models_cache.blobs import BlobStore
from models_cache.cut_network import CutNetwork, cut_at_boundary, learning_names
from models_cache.pixels import PixelCache, PixelKey
from tests.training_jobs import SMALL, store_dataset

pytestmark = pytest.mark.slow

_CLASSES = ("red", "green")
_BIT_EQUAL = "mobilenet_v3_small"  # its convolutions give an image the same bits in any batch


class Silent:
    """Takes what a training reports; a warning is a failure."""

    def progress(self, unit: str, done: int, total: int | None) -> None:
        pass

    def metrics(self, step: int, metrics: dict[str, float], epoch: float | None = None) -> None:
        pass

    def warning(self, code: str, message: str) -> None:
        raise AssertionError(f"{code}: {message}")

    def log(self, message: str) -> None:
        pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LoadedDataset:
    folder = tmp_path_factory.mktemp("data")
    manifest = store_dataset(folder, {"train": 9, "val": 3}, _CLASSES)
    key = PixelKey(manifest.digest, SMALL.resize_px, SMALL.interpolation)
    blobs, cache = BlobStore(folder / "blobs"), PixelCache(folder / "pixels")
    return load_dataset(blobs, cache, manifest, key, 1, lambda _done, _total: None)


def state_of(architecture: str, recipe: FinetuneRecipe) -> TrainingState:
    torch.manual_seed(0)
    model = build_classifier(architecture, 2).to(memory_format=torch.channels_last)
    return TrainingState(model, build_optimizer(model, recipe))


def recipe_of(tune: int, **different: object) -> FinetuneRecipe:
    values = {"epochs": 4, "batch_size": 5, "batch_norm": "train", "class_weights": "none"}
    return FinetuneRecipe(tune=tune, **{**values, "augmentation": "flip", **different})  # type: ignore[arg-type]


def cut(model: Classifier, tune: int) -> CutNetwork | None:
    recipe = recipe_of(tune)
    build_optimizer(model, recipe)
    prepare_modules(model, recipe)
    return cut_at_boundary(model.backbone, learning_names(model.backbone))


@pytest.mark.parametrize(
    "architecture",
    ["mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "resnet18", "efficientnet_b0", "vgg11",
     "regnet_y_400mf", "shufflenet_v2_x0_5"],
)  # fmt: skip
@pytest.mark.parametrize("tune", [0, 2])
def test_both_parts_together_give_the_features_of_the_whole(architecture: str, tune: int) -> None:
    torch.manual_seed(0)
    model = build_classifier(architecture, 2)
    network = cut(model, tune)
    assert network is not None
    model.eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected: Tensor = model.backbone(images)
        activations = network.frozen(images)
        found = network.learning(activations)
    assert torch.equal(found, expected)
    learning = {id(p) for p in network.learning.parameters() if p.requires_grad}
    assert learning == {id(p) for p in model.backbone.parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in network.frozen.parameters())


def test_a_network_that_learns_as_a_whole_is_not_cut() -> None:
    model = build_classifier("mobilenet_v3_small", 2)
    stages = len(parameter_groups_in_depth_order(model.backbone))
    assert cut(model, stages) is None


def trained(
    dataset: LoadedDataset, recipe: FinetuneRecipe, folder: Path | None
) -> tuple[TrainingState, int]:
    """Train; return the state and how many images passed the first convolution."""
    state, passed = state_of(_BIT_EQUAL, recipe), [0]
    first = next(m for m in state.model.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda _m, images, _out: passed.append(len(images[0])))
    data = TrainingData(dataset, dataset.indices("train"), dataset.indices("val"), SMALL)
    around = Surroundings(
        1, torch.float32, Silent(), Interruption(None), lambda _state: None, None, folder
    )
    fine_tune(state, Classification(_CLASSES), data, recipe, around)
    return state, sum(passed)


@pytest.mark.parametrize(
    ("tune", "augmentation", "difference"),
    # Convolutions alone are frozen; and with them a linear layer, which rounds as its batch says
    [(2, "flip", 0.0), (2, "none", 0.0), (0, "flip", 1e-6)],
)
def test_kept_activations_teach_what_computed_ones_do(
    dataset: LoadedDataset, tmp_path: Path, tune: int, augmentation: str, difference: float
) -> None:
    recipe = recipe_of(tune, augmentation=augmentation)
    (computed, often), (kept, once) = (
        trained(dataset, recipe, folder) for folder in (None, tmp_path)
    )
    expected, found = computed.tensors(), kept.tensors()
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=difference, atol=difference)
    assert kept.best_metrics == pytest.approx(computed.best_metrics, rel=difference)
    views = 2 if augmentation == "flip" else 1
    assert often == 4 * 18 + 5 * 6  # epochs, and comparisons with the one before them
    assert once == views * 18 + 6
    assert list(tmp_path.iterdir()) == []  # the file never had a name


@pytest.mark.parametrize("different", [{"augmentation": "crop"}, {"mixup_alpha": 0.5}])
def test_pictures_without_number_are_not_kept(
    dataset: LoadedDataset, tmp_path: Path, different: dict[str, object]
) -> None:
    _, often = trained(dataset, recipe_of(2, **different), tmp_path)
    assert often >= 4 * 18 + 5 * 6


def test_more_activations_than_the_bound_are_not_kept(
    dataset: LoadedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "LIMIT_BYTES", 1000)
    _, often = trained(dataset, recipe_of(2), tmp_path)
    assert often > 4 * 18 + 5 * 6
    assert np.isfinite(often)
