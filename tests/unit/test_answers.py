"""Heads of one batch against each head alone, as a module of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models_cache.answers import ImageOutput, outputs_of
from models_cache.artifacts import MULTILABEL, Artifact, ArtifactFacts
from models_cache.calibration import Calibration
from models_cache.errors import ModelUnhealthy
from models_cache.features import normalised, normalised_planes
from models_cache.novelty import fit_familiarity, judge
from models_cache.preprocessing import Preprocessing
from models_cache.served_models import BackboneKey, LoadedHead

WIDTH = 24


def head(
    seed: int, classes: int, task: str = "classification", temperature: float = 1.0
) -> LoadedHead:
    rng = np.random.default_rng(seed)
    facts = ArtifactFacts(
        task=task,
        architecture="resnet18",
        kind="head",
        weights={"sha256": "0" * 64},
        preprocessing=Preprocessing(),
        classes=tuple(f"class {number}" for number in range(classes)),
        feature_width=WIDTH,
        calibration=Calibration(temperature, "val", 10, 0.95, ()),
        thresholds=(0.5,) * classes if task == MULTILABEL else None,
    )
    artifact = Artifact(f"{seed:064x}", facts, {})
    return LoadedHead(
        artifact,
        BackboneKey(*artifact.backbone_key, artifact=artifact),
        rng.normal(size=(classes, WIDTH)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
        None,
    )


def expected(own: LoadedHead, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and scores `[C]` of one image by torch."""
    weight, bias = torch.from_numpy(own.weight), torch.from_numpy(own.bias)
    logits = functional.linear(features, weight, bias) / own.temperature
    several = own.artifact.facts.task == MULTILABEL
    return logits, logits.sigmoid() if several else logits.softmax(0)


def test_heads_of_any_width_and_task_give_together_what_each_gives_alone() -> None:
    heads = [
        head(1, 2),
        head(2, 1000, temperature=2.5),
        head(3, 1),
        head(4, 5, MULTILABEL, temperature=0.5),
    ]
    each = [heads[number] for number in (0, 0, 0, 1, 2, 3, 3)]
    features = torch.randn(len(each), WIDTH, generator=torch.Generator().manual_seed(0))
    outcomes = outputs_of(each, features.numpy())
    for own, row, outcome in zip(each, features, outcomes, strict=True):
        assert isinstance(outcome, ImageOutput)
        logits, scores = expected(own, row)
        np.testing.assert_allclose(outcome.logits, logits.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outcome.scores, scores.numpy(), atol=1e-6)
        np.testing.assert_array_equal(outcome.features, row.numpy())
        assert (outcome.ood_score, outcome.out_of_distribution) == (None, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_head_that_is_not_finite_fails_alone(value: float) -> None:
    healthy, sick = head(1, 3), head(2, 4)
    sick.bias[1] = value
    features = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    first, failed, last = outputs_of([healthy, sick, healthy], features)
    assert isinstance(failed, ModelUnhealthy)
    assert failed.digest == sick.artifact.digest
    for outcome, row in ((first, features[0]), (last, features[2])):
        assert isinstance(outcome, ImageOutput)
        _, scores = expected(healthy, torch.from_numpy(row))
        np.testing.assert_allclose(outcome.scores, scores.numpy(), atol=1e-6)


def test_images_of_several_models_are_judged_as_each_by_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    known = []
    for _ in range(2):
        familiarity = fit_familiarity(
            torch.randn(60, WIDTH, generator=generator), torch.arange(60) % 5
        )
        assert familiarity is not None
        known.append(familiarity)
    features = torch.randn(6, WIDTH, generator=generator).numpy()
    each = [known[number] for number in (0, 1, 1, 0, 0, 1)]
    scores, strange = judge(each, features)
    for row, familiarity in enumerate(each):
        (score,), (flag,) = judge([familiarity], features[row : row + 1])
        assert (scores[row], strange[row]) == (score, flag)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_are_normalised_to_the_same_bits_either_way(dtype: type[np.generic]) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 20, 17, 3)).astype(dtype)
    planes = normalised_planes(pixels, Preprocessing())
    assert planes.flags.c_contiguous
    np.testing.assert_array_equal(planes, normalised(torch.from_numpy(pixels), Preprocessing()))
