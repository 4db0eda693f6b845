"""Augmentation: torchvision's operations, from given draws, the same in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.training.augment import Augmentation
from jobs.training.batched_crops import resized
from jobs.training.mixing import Mixing, draw_mixing
from jobs.training.policies import randaugment, trivialaugment
from jobs.training.schedule import Schedule
from models_cache.blobs import BlobStore
from models_cache.pixels import PixelCache, PixelKey
from tests.training_jobs import SMALL, store_dataset

NAMES = ["none", "flip", "crop", "randaugment", "trivialaugment"]


def image(seed: int = 0) -> Tensor:
    """A smooth coloured picture with an edge: no operation leaves all of it as it was."""
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    noise = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(seed))
    picture = torch.stack([rows * 4, columns * 5, (rows + columns) * 2]) + noise * 20
    picture[:, :20] += 30
    return picture.clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LoadedDataset:
    folder = tmp_path_factory.mktemp("data")
    manifest = store_dataset(folder, {"train": 6})
    key = PixelKey(manifest.digest, SMALL.resize_px, SMALL.interpolation)
    blobs, cache = BlobStore(folder / "blobs"), PixelCache(folder / "pixels")
    return load_dataset(blobs, cache, manifest, key, 1, lambda _done, _total: None)


@pytest.mark.parametrize(
    ("policy", "transform", "operations", "bins"),
    [
        (trivialaugment, v2.TrivialAugmentWide(), 1, 31),
        (randaugment, v2.RandAugment(), 2, 1),
    ],
)
def test_every_operation_is_torchvisions(
    policy: Callable[[Tensor, tuple[float, float]], Tensor],
    transform: v2.TrivialAugmentWide | v2.RandAugment,
    operations: int,
    bins: int,
) -> None:
    # torchvision's table: an operation's strengths in 31 bins, and whether it has a sign
    space = type(transform)._AUGMENTATION_SPACE
    assert len(space) == 14
    for index, (name, (strengths, signed)) in enumerate(space.items()):
        values = strengths(31, 48, 40)
        for bin_ in range(0, 31, 10) if bins > 1 else [9]:
            for sign, rest in ((-1.0, 0.25), (1.0, 0.75)):
                strength = 0.0 if values is None else float(values[bin_])
                expected = image()
                draw = (index + rest) / 14
                draws = (draw, (bin_ + 0.5) / 31)
                if operations == 2:
                    draws = (draw, draw)
                for _ in range(operations):
                    expected = transform._apply_image_or_video_transform(
                        expected, name, sign * strength if signed else strength,
                        interpolation=transform.interpolation, fill=transform._fill,
                    )  # fmt: skip
                # Strengths are doubles here and float32 there: a rounding may fall otherwise
                wrong = (policy(image(), draws).int() - expected.int()).abs() > 1
                assert wrong.float().mean() < 0.01, (name, bin_, sign)


def test_all_operations_are_drawn_equally_often() -> None:
    draws = np.random.default_rng(0).random((1400, 2))
    changed = Counter(
        trivialaugment(image(), (float(a), float(b))).numpy().tobytes() for a, b in draws
    )
    unchanged = changed[image().numpy().tobytes()]
    assert 60 <= unchanged <= 250  # Identity, and operations of strength 0
    assert len(changed) > 400


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_augmented_the_same_in_any_batch_and_whatever_torch_drew(
    dataset: LoadedDataset, name: str
) -> None:
    augmentation = Augmentation(name, 0.5, 64, torch.device("cpu"))
    draws = Schedule(12, 4, 1, 0.0, 7).epoch(0).draws
    indices = dataset.indices("train")
    torch.manual_seed(1)
    whole = augmentation.batch(dataset, indices, draws)
    assert (whole.shape, whole.dtype) == ((12, 64, 64, 3), torch.uint8)
    torch.manual_seed(2)
    order = np.random.default_rng(0).permutation(12)
    parts = [augmentation.batch(dataset, indices[p], draws[p]) for p in np.array_split(order, 5)]
    assert torch.equal(torch.cat(parts), whole[torch.from_numpy(order)])


@pytest.mark.parametrize(("name", "views"), [("none", 1), ("flip", 2), ("crop", None)])
def test_an_image_becomes_as_many_pictures_as_said(
    dataset: LoadedDataset, name: str, views: int | None
) -> None:
    augmentation = Augmentation(name, 0.5, 64, torch.device("cpu"))
    assert augmentation.views == views
    draws = np.random.default_rng(0).random((20, 8))
    found = augmentation.batch(dataset, np.zeros(20, dtype=np.int64), draws)
    pictures = {picture.numpy().tobytes() for picture in found}
    assert len(pictures) == (views or 20)
    if views:
        assert {augmentation.view(draw) for draw in draws} == set(range(views))


def test_rectangles_of_a_batch_are_resized_together_as_one_by_one() -> None:
    generator = np.random.default_rng(0)
    sizes = [(90, 120), (40, 31), (64, 64), (7, 200), (200, 1)]  # smaller, larger, both
    smooth = np.add.outer(np.arange(200), np.arange(200))[..., None] % 256 * np.ones(3)
    noise = generator.integers(0, 256, (200, 200, 3))
    for picture in (smooth, noise):
        cuts = [picture[:high, :wide].astype(np.uint8) for high, wide in sizes]
        flips = [index % 2 == 1 for index in range(len(sizes))]
        together = resized(cuts, flips, 64, torch.device("cpu"))
        assert (together.shape, together.dtype) == ((5, 64, 64, 3), torch.uint8)
        assert together.is_contiguous()
        for cut, flip, found in zip(cuts, flips, together, strict=True):
            image = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float()
            exact = interpolate(image, size=(64, 64), mode="bilinear", antialias=True)
            exact = exact[0].permute(1, 2, 0)
            expected = exact.flip(1) if flip else exact
            assert (found.float() - expected).abs().max() <= 0.51


def load(values: Tensor) -> Callable[[np.ndarray], Tensor]:
    return lambda rows: values[torch.from_numpy(rows)]


def test_without_alphas_nothing_is_mixed() -> None:
    assert draw_mixing(8, 0.0, 0.0, np.random.default_rng(0)) is None


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_are_mixed_as_much_as_images(alphas: tuple[float, float]) -> None:
    # Images of one value each: the mean of a mixed one tells how much of which is in it
    values = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 32, 32)
    targets = torch.eye(6)
    kinds = set()
    for seed in range(30):
        mixing = draw_mixing(6, *alphas, np.random.default_rng(seed))
        assert mixing is not None
        kinds.add(mixing.box is None)
        rows = np.arange(6)
        images = mixing.images(load(values.clone()), rows)
        mixed = mixing.targets(load(targets), rows, 32)
        assert torch.allclose(mixed.sum(dim=1), torch.ones(6))
        said = (mixed * torch.arange(6.0)).sum(dim=1)
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), said, rtol=1e-5, atol=1e-5)
    assert (
        kinds
        == {
            (0.4, 0.0): {True},
            (0.0, 1.0): {False},
            (0.4, 1.0): {True, False},
        }[alphas]
    )


def test_parts_of_a_batch_are_mixed_as_the_whole() -> None:
    images = torch.rand(7, 3, 16, 16)
    mixing = draw_mixing(7, 1.0, 0.0, np.random.default_rng(3))
    assert isinstance(mixing, Mixing)
    whole = mixing.images(load(images), np.arange(7))
    parts = [mixing.images(load(images), part) for part in np.array_split(np.arange(7), 3)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_step_is_mixed_the_same_whenever_it_is_asked() -> None:
    schedule = Schedule(12, 4, 3, 0.0, 7)
    drawn = [draw_mixing(4, 0.5, 0.5, schedule.mixing_generator(step)) for step in (0, 1, 2, 1)]
    assert str(drawn[1]) == str(drawn[3])
    assert len({str(each) for each in drawn}) == 3
