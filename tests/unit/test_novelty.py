"""Telling unknown kinds of images from known ones, on drawn features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from models_cache import novelty
from models_cache.novelty import (
    AXES,
    FALSE_ALARMS,
    Familiarity,
    PackedFamiliarity,
    fit_familiarity,
    judge,
    packed,
)


def kind_of_images(seed: int, count: int, axes_seed: int = 0) -> torch.Tensor:
    """Draw features `[N, 40]` near a plane of four dimensions that `axes_seed` chooses."""
    axes = torch.randn(4, 40, generator=torch.Generator().manual_seed(axes_seed))
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(count, 4, generator=generator) @ axes
    return inside + 0.3 * torch.randn(count, 40, generator=generator)


def judged(
    known: Familiarity, features: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return judge([known] * len(features), features.numpy())


def folds(count: int) -> torch.Tensor:
    return torch.arange(count) % 5


def test_images_of_another_kind_are_called_out_of_distribution() -> None:
    known = fit_familiarity(kind_of_images(1, 200), folds(200))
    assert known is not None
    scores, strange = judged(known, kind_of_images(2, 500))
    assert strange.mean() <= 2 * FALSE_ALARMS
    assert 0.4 < scores.mean() < 0.6  # ranks of images like the known ones are uniform
    scores, strange = judged(known, kind_of_images(3, 100, axes_seed=9))
    assert scores.min() > 0.95
    assert strange.mean() > 0.9


def wide_features(seed: int, count: int, noise: float) -> torch.Tensor:
    """Draw features `[N, 512]` that are off a plane of four dimensions by `noise`."""
    axes = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(count, 4, generator=generator) @ axes
    return inside + noise * torch.randn(count, 512, generator=generator)


def test_what_serving_keeps_is_half_as_large_and_says_the_same() -> None:
    known = fit_familiarity(wide_features(1, 200, noise=1.0), folds(200))
    assert known is not None
    kept = packed(known)
    assert isinstance(kept, PackedFamiliarity)
    assert kept.nbytes < 0.7 * known.nbytes
    images = torch.cat([wide_features(2, 300, noise=1.0), wide_features(3, 100, noise=1.3)])
    scores, strange = judged(known, images)
    kept_scores, kept_strange = judge([kept] * len(images), images.numpy())
    np.testing.assert_allclose(kept_scores, scores, atol=0.02)
    np.testing.assert_array_equal(kept_strange, strange)


def test_axes_that_span_nearly_all_of_the_known_images_are_kept_as_they_are() -> None:
    known = fit_familiarity(wide_features(1, 200, noise=0.05), folds(200))
    assert known is not None
    assert packed(known) is known


def test_axes_that_are_none_are_kept_as_they_are() -> None:
    known = fit_familiarity(wide_features(1, 200, noise=1.0), folds(200))
    assert known is not None
    assert packed(replace(known, axes=np.zeros_like(known.axes))).nbytes == known.nbytes


def test_more_axes_than_are_ever_fitted_are_kept_as_they_are() -> None:
    known = fit_familiarity(wide_features(1, 200, noise=1.0), folds(200))
    assert known is not None
    width = known.axes.shape[0]
    many = np.eye(width, AXES + 1, dtype=np.float16)
    assert packed(replace(known, axes=many)).axes is many
    fewer = packed(replace(known, axes=np.ascontiguousarray(many[:, :AXES])))
    assert isinstance(fewer, PackedFamiliarity)


def test_a_scale_of_the_features_says_nothing() -> None:
    known = fit_familiarity(kind_of_images(1, 100), folds(100))
    assert known is not None
    images = kind_of_images(2, 10)
    np.testing.assert_allclose(judged(known, images)[0], judged(known, 7 * images)[0])


def test_the_novelty_of_known_images_is_that_of_images_left_out() -> None:
    features, fold = kind_of_images(1, 60), folds(60)
    known = fit_familiarity(features, fold)
    assert known is not None
    expected = []
    for left_out in range(5):
        rows = normalize(features[fold != left_out].double())
        centre = rows.mean(dim=0)
        _, _, axes = torch.linalg.svd(rows - centre, full_matrices=False)
        new = normalize(features[fold == left_out].double()) - centre
        own = axes[: len(rows) // 4]
        expected.append((new - new @ own.T @ own).norm(dim=1))
    torch.testing.assert_close(
        torch.from_numpy(known.novelties),
        torch.cat(expected).sort().values.float(),
        atol=2e-3,
        rtol=1e-2,
    )


def test_many_images_are_thinned_and_few_say_nothing() -> None:
    features = kind_of_images(1, 2500)
    known = fit_familiarity(features, folds(2500))
    assert known is not None
    assert len(known.novelties) == 834
    assert known.axes.shape == (40, novelty.AXES)
    few = novelty.FEWEST_IMAGES - 1
    assert fit_familiarity(features[:few], folds(few)) is None
    assert fit_familiarity(features[:50], torch.zeros(50)) is None


def test_the_same_images_give_the_same_familiarity_after_storage() -> None:
    features = kind_of_images(1, 100)
    first, second = (fit_familiarity(features, folds(100)) for _ in range(2))
    assert first is not None
    assert second is not None
    stored = Familiarity.of(second.arrays())
    assert all(np.array_equal(getattr(first, n), getattr(stored, n)) for n in first.arrays())


def test_the_number_of_threads_changes_no_bit_and_is_as_before() -> None:
    features, threads = kind_of_images(1, 300), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(fit_familiarity(features, folds(300)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    first, second = found
    assert first is not None
    assert second is not None
    assert all(np.array_equal(getattr(first, n), getattr(second, n)) for n in first.arrays())


def test_copies_of_one_image_are_judged_without_an_error() -> None:
    features = torch.ones(40, 8)
    known = fit_familiarity(features, folds(40))
    assert known is not None
    scores, _ = judged(known, torch.ones(2, 8))
    assert np.isfinite(scores).all()
