"""What a race says of probes whose logits are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jobs.datasets.label_sets import joined
from jobs.datasets.manifest import LabelledImage, build_manifest
from jobs.errors import RecipeInvalid
from jobs.training.bootstrap_precision import MOST_DRAWS
from jobs.training.learning_curve import FRACTIONS, Point, learning_curve, part_of
from jobs.training.race_images import Judged, macro_f1
from jobs.training.race_spec import Entrant
from jobs.training.standings import Probe, curve_of, rank, recommend

IMAGES = 120


@pytest.fixture
def judged() -> Judged:
    images = [
        LabelledImage(f"{i:064x}", 1, f"{i}.png", 8, 8, "train", "ab"[i % 2]) for i in range(IMAGES)
    ]
    return Judged.of(build_manifest(images, ("a", "b")), 5)


def probe(name: str, gflops: float, logits: Tensor) -> Probe:
    weights = {"weights": {"name": "W", "sha256": "0" * 64}}
    return Probe(Entrant(name, "DEFAULT", 1000, gflops), weights, 8, 0.1, 1.0, logits)


def logits_of(judged: Judged, strength: float, wrong: int = 0) -> Tensor:
    """Return logits that favour the right class, but for the first `wrong` images."""
    signs = torch.ones(IMAGES)
    signs[:wrong] = -1
    right = torch.nn.functional.one_hot(judged.labels, 2).float()
    return right * (strength * signs)[:, None]


def test_cheapest_of_the_indistinguishable_is_recommended(judged: Judged) -> None:
    noise = torch.randn(IMAGES, 2, generator=torch.Generator().manual_seed(0)) * 0.05
    large = probe("large", 9.0, logits_of(judged, 3.0))
    small = probe("small", 0.3, logits_of(judged, 3.0) + noise)
    poor = probe("poor", 0.1, logits_of(judged, 3.0, wrong=30))
    standings = rank([poor, small, large], judged, "loss")
    assert standings[-1].probe is poor
    assert [s.is_level for s in standings] == [True, True, False]
    advice = recommend(standings, [])
    assert advice["backbone"] == "small"
    assert "cheapest of 2" in advice["reason"]


def test_ranking_by_accuracy_counts_wrong_guesses(judged: Judged) -> None:
    sure = probe("sure", 1.0, logits_of(judged, 9.0, wrong=20))
    unsure = probe("unsure", 1.0, logits_of(judged, 0.5, wrong=2))
    assert rank([sure, unsure], judged, "accuracy_top1")[0].probe is unsure
    figures = rank([unsure], judged, "accuracy_top1")[0].figures
    assert figures["accuracy_top1"] == pytest.approx(118 / 120)
    low, high = figures["accuracy_interval_95"]
    assert low < 118 / 120 < high


def test_a_single_backbone_is_told_as_such(judged: Judged) -> None:
    standings = rank([probe("only", 1.0, logits_of(judged, 1.0))], judged, "loss")
    assert "only one" in recommend(standings, [])["reason"]


def test_curve_says_whether_more_images_would_help(judged: Judged) -> None:
    best = probe("best", 1.0, logits_of(judged, 3.0))
    rising = [Point(0.5, 48.0, logits_of(judged, 1.0))]
    flat = [Point(0.5, 48.0, logits_of(judged, 3.0))]
    assert "would help" in curve_of(best, rising, judged).verdict
    assert "no sign" in curve_of(best, flat, judged).verdict
    points = curve_of(best, rising, judged).points
    assert [(p["fraction"], p["images"]) for p in points] == [(0.5, 48), (1.0, 96)]


def test_parts_are_nested_stratified_and_keep_copies_together(judged: Judged) -> None:
    contents = list(judged.contents)
    contents[2] = contents[0]  # a copy, of the same class
    among = torch.ones(IMAGES, dtype=torch.bool)
    tenth, half = (set(part_of(judged.labels, contents, among, f).tolist()) for f in (0.1, 0.5))
    assert tenth < half
    assert {int(judged.labels[i]) for i in tenth} == {0, 1}
    assert (0 in half) == (2 in half)
    assert 58 <= len(half) <= 62


def test_learning_curve_rises_with_images(judged: Judged) -> None:
    random = torch.Generator().manual_seed(1)
    centres = torch.nn.functional.one_hot(judged.labels, 16).float()
    features = centres + torch.randn(IMAGES, 16, generator=random)
    polled: list[tuple[int, int]] = []
    points = learning_curve(
        features,
        judged.labels,
        judged.contents,
        judged.folds,
        0.1,
        lambda done, total: polled.append((done, total)),
    )
    assert [point.fraction for point in points] == list(FRACTIONS)
    losses = [judged.cost(point.logits, "loss") for point in points]
    assert losses[0] > losses[-1]
    assert polled[0] == (0, 30)
    assert [done for done, _ in polled] == list(range(31))


@pytest.fixture
def labelled() -> Judged:
    """Images with any number of three labels, the last one rare."""
    sets = [{"a"}, {"a", "b"}, {"b"}, set()]
    images = [
        LabelledImage(
            f"{i:064x}", 1, f"{i}.png", 8, 8, "train",
            joined(sets[i % 4] | ({"c"} if i % 20 == 0 else set())), several=True,
        )
        for i in range(IMAGES)
    ]  # fmt: skip
    return Judged.of(build_manifest(images, ("a", "b", "c")), 5)


def noisy(judged: Judged, noise: float, seed: int = 0) -> Tensor:
    """Return logits that favour the right labels, with noise."""
    random = torch.Generator().manual_seed(seed)
    return 2 * judged.labels - 1 + noise * torch.randn(judged.labels.shape, generator=random)


def test_backbones_for_several_labels_are_ranked_by_precision_with_intervals(
    labelled: Judged,
) -> None:
    assert labelled.measure("auto") == "mean_average_precision"
    good = probe("good", 9.0, noisy(labelled, 0.8))
    close = probe("close", 0.3, noisy(labelled, 0.8) + 0.01)  # the same order
    poor = probe("poor", 0.1, noisy(labelled, 4.0))
    standings = rank([poor, good, close], labelled, "mean_average_precision")
    assert [s.probe.entrant.architecture for s in standings] == ["close", "good", "poor"]
    assert [s.is_level for s in standings] == [True, True, False]
    for standing in standings:
        figures = standing.figures
        low, high = figures["mean_average_precision_interval_95"]
        assert low < figures["mean_average_precision"] < high
        assert figures["loss_interval_95"][0] < figures["loss"] < figures["loss_interval_95"][1]
    assert standings[2].behind.as_json()["draws"] == MOST_DRAWS
    advice = recommend(standings, [curve_of(good, [Point(0.5, 48.0, poor.logits)], labelled)])
    assert advice["backbone"] == "close"
    assert "would help" in advice["more_images"]


def test_a_race_cannot_be_ranked_by_what_is_not_measured(judged: Judged, labelled: Judged) -> None:
    assert judged.measure("auto") == "loss"
    assert labelled.measure("loss") == judged.measure("loss") == "loss"
    with pytest.raises(RecipeInvalid, match="any number of labels have no accuracy_top1"):
        labelled.measure("accuracy_top1")
    with pytest.raises(RecipeInvalid, match="one label each have no mean_average_precision"):
        judged.measure("mean_average_precision")


def test_parts_of_label_sets_are_nested_and_have_every_class(labelled: Judged) -> None:
    contents = list(labelled.contents)
    contents[2] = contents[0]
    among = torch.ones(IMAGES, dtype=torch.bool)
    parts = [set(part_of(labelled.labels, contents, among, f).tolist()) for f in (0.02, 0.1, 0.5)]
    assert parts[0] < parts[1] < parts[2]
    for part in parts:
        assert labelled.labels[sorted(part)].sum(dim=0).min() >= 1
        assert (0 in part) == (2 in part)
    assert len(parts[0]) <= 7
    assert 58 <= len(parts[2]) <= 63


def test_learning_curve_of_several_labels_rises(labelled: Judged) -> None:
    random = torch.Generator().manual_seed(1)
    features = labelled.labels @ torch.randn(3, 16, generator=random)
    features = features + torch.randn(IMAGES, 16, generator=random)
    points = learning_curve(
        features, labelled.labels, labelled.contents, labelled.folds, 0.1, lambda *_: None
    )
    losses = [labelled.cost(point.logits, "loss") for point in points]
    assert losses[0] > losses[-1]
    assert points[0].logits.shape == (IMAGES, 3)


def test_macro_f1_weighs_classes_alike() -> None:
    labels = torch.tensor([0] * 98 + [1] * 2)
    assert macro_f1(torch.zeros(100, dtype=torch.int64), labels, 2) == pytest.approx(
        0.4949, abs=1e-3
    )
    assert macro_f1(labels, labels, 3) == 1.0
