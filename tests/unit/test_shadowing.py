"""Answers of a candidate beside those that were given."""

from __future__ import annotations

from typing import Any

import pytest

from service.shadowing import compare


def scored(**scores: float) -> dict[str, Any]:
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return {"scores": [{"label": label, "score": score} for label, score in ranked]}


def test_same_label_agrees_and_the_score_of_that_label_is_compared() -> None:
    found = compare([scored(ant=0.9, bee=0.1)], [scored(ant=0.6, bee=0.4)])
    assert (found.compared, found.agreed, found.failed) == (1, 1, 0)
    assert found.sum_difference == found.most_difference == pytest.approx(0.3)


def test_another_label_does_not_and_an_unknown_one_has_no_score() -> None:
    found = compare(
        [scored(ant=0.9, bee=0.1), scored(wasp=0.7, ant=0.3)],
        [scored(ant=0.2, bee=0.8), scored(ant=0.6, bee=0.4)],
    )
    assert (found.compared, found.agreed) == (2, 0)
    assert found.sum_difference == pytest.approx(1.4)
    assert found.most_difference == pytest.approx(0.7)


def test_several_labels_are_compared_as_sets_of_labels() -> None:
    one = {**scored(ant=0.9, leaf=0.8), "labels": ["ant", "leaf"]}
    other = {**scored(ant=0.9, leaf=0.4), "labels": ["ant"]}
    assert compare([one, one], [one, other]).agreed == 1
    turned = {**one, "labels": ["leaf", "ant"]}  # a version whose classes stand in another order
    assert compare([one], [turned]).agreed == 1


def test_what_cannot_be_read_counts_for_nobody_and_what_fails_is_counted() -> None:
    broken: dict[str, Any] = {"error": {"code": "unreadable-image"}}
    found = compare([broken, scored(ant=1.0)], [broken, broken])
    assert (found.compared, found.failed) == (0, 1)
