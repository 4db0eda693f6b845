"""Views: named, a function of the image's content alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.training.views import pixels_of_view, view_names
from models_cache.blobs import BlobStore
from models_cache.pixels import PixelCache, PixelKey
from tests.training_jobs import SMALL, store_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> LoadedDataset:
    manifest = store_dataset(tmp_path, {"train": 3})
    key = PixelKey(manifest.digest, SMALL.resize_px, SMALL.interpolation)
    cache, blobs = PixelCache(tmp_path / "pixels"), BlobStore(tmp_path / "blobs")
    return load_dataset(blobs, cache, manifest, key, 1, lambda _done, _total: None)


def test_centre_comes_first_and_every_view_has_its_own_name() -> None:
    assert view_names(1) == ["center-crop"]
    assert view_names(4) == ["center-crop", "flip", "crop:1", "crop:2"]
    assert view_names(3, "trivialaugment") == ["center-crop", "flip", "trivialaugment:1"]
    assert len(set(view_names(16))) == 16


@pytest.mark.parametrize("policy", ["crop", "trivialaugment"])
def test_view_of_an_image_does_not_depend_on_its_companions(
    dataset: LoadedDataset, policy: str
) -> None:
    for view in view_names(4, policy):
        together = pixels_of_view(dataset, view, range(6), SMALL.crop_px)
        assert together.shape == (6, SMALL.crop_px, SMALL.crop_px, 3)
        for index in range(6):
            alone = pixels_of_view(dataset, view, [index], SMALL.crop_px)
            assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("policy", ["crop", "trivialaugment"])
def test_views_show_different_pixels(dataset: LoadedDataset, policy: str) -> None:
    shown = [pixels_of_view(dataset, view, [0], SMALL.crop_px) for view in view_names(5, policy)]
    assert torch.equal(shown[1], shown[0].flip(2))
    for number, first in enumerate(shown):
        assert not any(torch.equal(first, other) for other in shown[number + 1 :])
