"""Whose classes are whose, which images are meant, and what is said of images that nobody knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest
from jobs.errors import DatasetUnlabelled
from jobs.evaluate_version import chosen_images
from jobs.evaluation.calibrating import log_probabilities
from jobs.evaluation.errors import ClassesUnknown, SplitEmpty
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.matching import ClassMatch
from jobs.evaluation.verdict import (
    Published,
    evaluation_of,
    is_tuned_on,
    metrics_of,
    require_known,
    said_of_strangers,
    unknown_classes,
)
from models_cache.artifacts import ArtifactFacts
from models_cache.durable import sha256_of_bytes
from models_cache.preprocessing import Preprocessing

MODEL = ("bee", "ant", "cat")  # in no order: a class that was added later stands behind


def manifest(*labels: str, split: str = "test", several: bool = False) -> Manifest:
    """Return a dataset with one image for each label (or labels, `a|b`)."""
    images = [
        LabelledImage(sha256_of_bytes(f"{i}".encode()), 9, f"{i}", 8, 6, split, name, several)
        for i, name in enumerate(labels)
    ]
    return build_manifest(images, {name for image in images for name in image.names})


def match_of(found: Manifest) -> ClassMatch:
    return ClassMatch(MODEL, found.classes)


def facts() -> ArtifactFacts:
    return ArtifactFacts(
        task="classification",
        architecture="squeezenet1_1",
        kind="head",
        weights={"sha256": "0" * 64},
        preprocessing=Preprocessing(resize_px=72, crop_px=64),
        classes=MODEL,
        feature_width=4,
    )


def judged(count: int, seed: int = 0) -> JudgedImages:
    random = np.random.default_rng(seed)
    targets = torch.from_numpy(random.integers(0, len(MODEL), count))
    logits = random.normal(0, 1, (count, len(MODEL))).astype(np.float32)
    logits[np.arange(count), targets] += 2
    return JudgedImages(
        split="val",
        ids=[f"{i}" for i in range(count)],
        targets=targets,
        logits=torch.from_numpy(logits),
        features=torch.from_numpy(random.normal(0, 1, (count, 4)).astype(np.float32)),
        folds=torch.arange(count) % 5,
    )


def test_classes_are_matched_by_name_whatever_their_order() -> None:
    found = manifest("ant", "bee", "zebra", "Ant")
    match = match_of(found)
    assert match.unknown == ["Ant", "zebra"], "to the letter"
    assert match.absent == ["cat"]
    known = [image for image in found.images if match.knows(image)]
    named = [MODEL[index] for index in match.indices(known)]
    assert named == [found.classes[image.labels[0]] for image in known]
    assert sorted(named) == ["ant", "bee"]


def test_labels_that_the_model_lacks_have_no_column() -> None:
    found = manifest("ant|zebra", "bee|ant", "", "zebra", several=True)
    match = match_of(found)
    flags = match.flags(found.images)
    for image, row in zip(found.images, flags, strict=True):
        names = {found.classes[label] for label in image.labels}
        assert {MODEL[i] for i in np.flatnonzero(row)} == names - {"zebra"}
    assert unknown_classes(match, found.images) == [{"class": "zebra", "images": 2}]


def test_no_image_of_a_known_class_is_an_error_with_both_lists() -> None:
    found = manifest("zebra", "yak")
    with pytest.raises(ClassesUnknown) as caught:
        require_known(match_of(found), found.images)
    assert caught.value.images == 2
    assert "bee, ant, cat" in str(caught.value)
    assert "yak, zebra" in str(caught.value)
    require_known(match_of(manifest("zebra", "cat")), manifest("zebra", "cat").images)


def test_strangers_are_counted_by_what_they_are_called() -> None:
    found = manifest("zebra", "zebra", "yak")
    logits = np.array([[3, 0, 0], [0, 2, 0], [0, 0, 1]], np.float32)
    features = np.zeros((3, 4), np.float32)
    published = Published(facts(), None, tuned_here=False)
    rows = said_of_strangers(match_of(found), found.images, (logits, features), published)
    assert [(row["class"], row["images"]) for row in rows] == [("yak", 1), ("zebra", 2)]
    by_class: dict[str, list[NDArray[np.float32]]] = {
        found.classes[image.labels[0]]: [] for image in found.images
    }
    for image, row in zip(found.images, logits, strict=True):
        by_class[found.classes[image.labels[0]]].append(row)
    for row in rows:
        own = np.stack(by_class[row["class"]])
        assert row["predicted"] == {MODEL[index]: 1 for index in own.argmax(axis=1)}
        scores = np.exp(log_probabilities(own.astype(np.float64)).max(axis=1))
        assert row["mean_score"] == pytest.approx(scores.mean())


def test_without_a_split_test_comes_before_val_before_all() -> None:
    both = [replace(image, split="val") for image in manifest("ant", "bee").images[:1]]
    found = manifest("ant", "bee")
    mixed = Manifest(found.classes, (*both, *found.images[1:]))
    assert chosen_images(mixed, None) == ("test", mixed.of_split("test"))
    only_val = manifest("ant", "bee", split="val")
    assert chosen_images(only_val, None) == ("val", only_val.images)
    learned = manifest("ant", "bee", split="train")
    assert chosen_images(learned, None) == ("all", learned.images)
    assert chosen_images(mixed, "val") == ("val", mixed.of_split("val"))
    with pytest.raises(SplitEmpty, match="2 in train"):
        chosen_images(learned, "test")
    with pytest.raises(DatasetUnlabelled):
        chosen_images(replace(learned, task="unlabelled"), None)


def test_images_that_tuned_the_model_are_cross_fitted_and_others_use_what_it_has() -> None:
    reported = judged(60)
    calibration = Basis.of(judged(60, seed=1)).calibration
    tuned = replace(facts(), calibration=calibration)
    other = evaluation_of(Published(tuned, None, tuned_here=False), reported)
    own = evaluation_of(Published(tuned, None, tuned_here=True), reported)
    assert not other["calibration"]["cross_fitted"]
    assert other["calibration"]["temperature"] == calibration.temperature, "nothing is chosen here"
    assert own["calibration"]["cross_fitted"]
    assert own["confusion"] == other["confusion"]
    assert own["calibration"]["after"] != other["calibration"]["after"]
    assert any(row["measured"] for row in other["abstention"])
    assert not any(row["measured"] for row in own["abstention"])
    figures = metrics_of(other)
    assert figures["val/accuracy_top1"] == other["accuracy_top1"]
    assert "val/mean_average_precision" not in figures
    assert "val/accuracy_top5" not in figures


def test_only_the_same_split_of_the_same_data_tuned_a_model() -> None:
    calibration = Basis.of(judged(60)).calibration
    lineage = {"dataset_digest": "one"}
    assert is_tuned_on(calibration, lineage, "one", "val")
    assert not is_tuned_on(calibration, lineage, "two", "val")
    assert not is_tuned_on(calibration, lineage, "one", "test")
    assert not is_tuned_on(None, lineage, "one", "val")
