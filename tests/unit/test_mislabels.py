"""Likely mislabels of drawn predictions, with one label per image and with several."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jobs.datasets.label_sets import joined
from jobs.datasets.manifest import Manifest, build_manifest
from jobs.training.mislabels import mislabels, suspicion
from tests.unit.test_multilabel_data import image

NAMES = ("ant", "bee", "person")


def labelled(sets: list[set[str]]) -> Manifest:
    images = [image(n, joined(names), "train") for n, names in enumerate(sets)]
    return build_manifest(images, NAMES)


def said_of(manifest: Manifest, contradicted: dict[str, str]) -> Tensor:
    """Return logits that agree with every label but those of `{path: class}`."""
    logits = torch.full((len(manifest.images), 3), -3.0)
    for row, entry in enumerate(manifest.images):
        logits[row, list(entry.labels)] = 3.0
        if entry.path in contradicted:
            logits[row, NAMES.index(contradicted[entry.path])] *= -1.5  # surer than of others
    return logits


def test_a_label_that_is_missing_and_one_too_many_are_told_by_class() -> None:
    manifest = labelled([{"ant"}, {"bee", "person"}, set(), {"ant", "bee", "person"}] * 10)
    logits = said_of(manifest, {"0.jpg": "person", "1.jpg": "bee"})
    (finding,) = mislabels(manifest, logits, torch.arange(40))
    assert finding.code == "likely-mislabelled"
    assert finding.message.startswith("1 labels are probably missing and 1 probably wrong, of 60")
    by_path = {item["path"]: item for item in finding.items}
    missing, wrong = by_path["0.jpg"], by_path["1.jpg"]
    assert (missing["class"], missing["given"], missing["suggested"]) == (
        "person", False, "ant|person",
    )  # fmt: skip
    assert (wrong["class"], wrong["given"], wrong["suggested"]) == ("bee", True, "person")
    assert missing["label"] == "ant"
    assert wrong["suggested_probability"] > 0.9 > 0.1 > wrong["label_probability"]


def test_the_most_suspicious_label_comes_first_and_one_image_may_have_two() -> None:
    manifest = labelled([{"ant"}, {"bee"}, {"person"}] * 10)
    logits = said_of(manifest, {"0.jpg": "ant"})
    row = next(r for r, entry in enumerate(manifest.images) if entry.path == "0.jpg")
    logits[row, 1] = 9.0
    (finding,) = mislabels(manifest, logits, torch.arange(30))
    assert [item["class"] for item in finding.items] == ["bee", "ant"]
    assert "(0.jpg)" in finding.message


def test_a_rare_class_is_not_told_for_being_improbable() -> None:
    """Nobody says more than 0.4 of it: more likely absent than present is no contradiction."""
    manifest = labelled([{"ant"}] * 30 + [{"ant", "bee"}] * 2)
    logits = torch.tensor([3.0, -0.4, -3.0]).repeat(32, 1)
    (finding,) = mislabels(manifest, logits, torch.arange(32))
    assert {(item["class"], item["given"]) for item in finding.items} == {("bee", True)}
    assert list(mislabels(labelled([{"ant"}] * 32), logits, torch.arange(32))) == []


def test_nothing_is_told_where_nothing_is_contradicted() -> None:
    manifest = labelled([{"ant"}, {"bee"}, set()] * 5)
    assert list(mislabels(manifest, said_of(manifest, {}), torch.arange(15))) == []


def test_thresholds_come_from_images_that_heads_learned_from() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.45, 0.55], [0.02, 0.98]])
    labels, judges = np.array([0, 0, 0, 1]), np.array([True, True, False, True])
    # 0.55 is more than 0.45, and less than 0.8 of the 0.98 that the known image of class 1 gets
    assert suspicion(probabilities, labels, judges, 0.8).tolist() == [0, 0, 0, 0]
    judges[3] = False
    assert suspicion(probabilities, labels, judges, 0.8)[2] > 0
