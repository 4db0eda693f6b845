"""Plots and model card: what they say, that they cannot act, and that their code runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from jobs.evaluation.card import DataSummary, model_card
from jobs.evaluation.judged import Basis, JudgedImages
from jobs.evaluation.judged_labels import Thresholds, label_basis
from jobs.evaluation.plots import plots
from jobs.tasks.classification import Classification
from jobs.tasks.multilabel import Multilabel
from models_cache.artifacts import MULTILABEL, PLOT_FILES, ArtifactFacts, Kind, write_artifact
from models_cache.backbones import Classifier, build_backbone, feature_width
from models_cache.blobs import BlobStore
from models_cache.classifiers import golden_outputs, tensors_to_publish
from models_cache.plain_torch import loading_code
from models_cache.preprocessing import Preprocessing
from models_cache.svg import Drawing, check_svg

SMALL = Preprocessing(resize_px=72, crop_px=64)


def evaluated(classes: Sequence[str], count: int = 120) -> tuple[dict[str, Any], Basis]:
    """Return the evaluation of drawn logits, and its basis on other ones."""
    rng, width = np.random.default_rng(0), len(classes)
    judged = []
    for split in ("train-folds", "val"):
        logits = rng.normal(0, 2, (count, width))
        targets = torch.from_numpy((logits + rng.gumbel(size=logits.shape)).argmax(axis=1))
        features = torch.from_numpy(rng.normal(size=(count, 8))).float()
        ids = [f"{split}-{index}" for index in range(count)]
        folds = torch.arange(count) % 5
        logits32 = torch.from_numpy(logits).float()
        judged.append(JudgedImages(split, ids, targets, logits32, features, folds))
    basis = Basis.of(judged[0])
    return Classification(classes).evaluation(judged[1], basis), basis


def facts_of(architecture: str, kind: Kind = "whole", **different: object) -> ArtifactFacts:
    values: dict[str, Any] = {
        "task": "classification",
        "architecture": architecture,
        "kind": kind,
        "weights": {
            "name": "DRAWN", "sha256": "0" * 64, "file": "drawn.pth", "license": "CC0-1.0",
            "source": "https://example.org/weights",
        },
        "preprocessing": SMALL,
        "classes": ("ant", "bee"),
        "feature_width": feature_width(architecture),
        "lineage": {"job_id": "job_1", "recipe": {"name": "head"}},
    }  # fmt: skip
    return ArtifactFacts(**values | different)


def test_two_classes_have_every_plot_and_the_same_figures_the_same_bytes() -> None:
    evaluation, basis = evaluated(("ant", "bee"))
    drawn = plots(evaluation, basis.calibration)
    assert set(drawn) == set(PLOT_FILES)
    for data in drawn.values():
        check_svg(data.decode())
    assert plots(evaluation, basis.calibration) == drawn
    bare = plots(Classification(("a", "b", "c")).evaluation(judged_alone(), None), None)
    assert set(bare) == {"confusion.svg", "reliability.svg"}


def test_several_labels_have_plots_and_a_card_too() -> None:
    evaluation, basis = evaluated_labels()
    drawn = plots(evaluation, basis.calibration)
    assert set(drawn) == set(PLOT_FILES) - {"confusion.svg"}
    for data in drawn.values():
        check_svg(data.decode())
    assert "all labels" in drawn["roc.svg"].decode()
    facts = dataclasses.replace(
        facts_of("squeezenet1_1", task=MULTILABEL, thresholds=(0.3, 0.4)),
        calibration=basis.calibration,
    )
    card = model_card(facts, evaluation, DataSummary("d", {"val": {"ant": 3}}), list(drawn))
    assert set(re.findall(r"\]\(([a-z-]+\.svg)\)", card)) == set(drawn)
    assert f"sigmoid(logits / {basis.calibration.temperature:.4f})" in card
    assert "An answer is the whole set of labels" in card
    assert "| ECE before | ECE after |" in card


def evaluated_labels() -> tuple[dict[str, Any], Basis]:
    """Return the evaluation of drawn images with up to two labels, and its basis."""
    known, judged = (labelled(split, seed) for seed, split in enumerate(("train-folds", "val")))
    basis = label_basis(known)
    thresholds = Thresholds.chosen(known, basis.calibration)
    return Multilabel(("ant", "bee")).evaluation(judged, basis, thresholds), basis


def labelled(split: str, seed: int) -> JudgedImages:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (120, 2))
    targets = torch.from_numpy(rng.random((120, 2)) < 1 / (1 + np.exp(-logits))).float()
    features = torch.from_numpy(rng.normal(size=(120, 8))).float()
    ids = [f"{split}-{index}" for index in range(120)]
    folds = torch.arange(120) % 5
    return JudgedImages(split, ids, targets, torch.from_numpy(logits).float(), features, folds)


def judged_alone() -> JudgedImages:
    logits = torch.eye(3)
    return JudgedImages("val", "xyz", torch.arange(3), logits, torch.ones(3, 4), torch.zeros(3))


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    evaluation, basis = evaluated([f"class {index}" for index in range(60)], 600)
    text = plots(evaluation, basis.calibration)["confusion.svg"].decode()
    check_svg(text)
    assert "25 of 60 classes" in text


def test_names_of_classes_cannot_act() -> None:
    hostile = "<script>alert(1)</script>|x"
    evaluation, basis = evaluated((hostile, "bee"))
    for data in plots(evaluation, basis.calibration).values():
        check_svg(data.decode())
        assert "<script" not in data.decode()
    facts = facts_of("squeezenet1_1", classes=(hostile, "bee"))
    card = model_card(facts, evaluation, DataSummary("d", {"val": {hostile: 3}}), [])
    assert "<script" not in card


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        '<rect onload="alert(1)"/>',
        '<a href="javascript:alert(1)"/>',
        '<rect fill="url(http://example.org/x)"/>',
        '<rect style="fill:red"/>',
        "<foreignObject/>",
        "<!-- words -->",
        '<rect xmlns="http://www.w3.org/1999/xhtml"/>',
        "<image/>",
        "<rect>",
    ],
)
def test_drawings_that_could_act_are_refused(inside: str) -> None:
    plain = Drawing(10, 10, "title").as_bytes().decode()
    check_svg(plain)
    with pytest.raises(ValueError, match=r"allowed|XML|calls"):
        check_svg(plain.replace("</svg>", f"{inside}</svg>"))


@pytest.mark.parametrize(
    "head", ['<!DOCTYPE svg [<!ENTITY x "y">]>', '<?xml-stylesheet href="x"?>']
)
def test_document_types_and_instructions_are_refused(head: str) -> None:
    with pytest.raises(ValueError, match="only elements"):
        check_svg(head + Drawing(10, 10, "title").as_bytes().decode())


def test_a_card_says_what_a_person_should_know() -> None:
    evaluation, basis = evaluated(("ant", "bee"))
    facts = dataclasses.replace(facts_of("squeezenet1_1"), calibration=basis.calibration)
    data = DataSummary("f" * 64, {"train": {"ant": 70, "bee": 50}, "val": {"ant": 60, "bee": 60}})
    card = model_card(facts, evaluation, data, PLOT_FILES)
    low, high = evaluation["accuracy_interval_95"]
    assert f"{evaluation['accuracy_top1']:.3f} (95 % interval {low:.3f} to {high:.3f})" in card
    assert "| ant | 70 | 60 |" in card
    assert "CC0-1.0" in card
    assert "job_1" in card
    for heading in ("Data", "Figures", "Confidence", "Limits", "Lineage", "Licence", "Loading"):
        assert re.search(rf"^## {heading}", card, re.MULTILINE)
    assert set(re.findall(r"\]\(([a-z-]+\.svg)\)", card)) == set(PLOT_FILES)
    worst = evaluation["most_confident_errors"][0]["image"]
    assert f"`{worst}`" in card


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("squeezenet1_1", "head"),
        ("squeezenet1_1", "whole"),
        ("mobilenet_v3_small", "head"),
        ("resnet18", "whole"),
    ],
)
def test_the_code_of_a_card_loads_the_model_without_this_project(
    architecture: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pretrained = torchvision.models.get_model(architecture, weights=None)
    torch.save(pretrained.state_dict(), tmp_path / "drawn.pth")
    backbone = build_backbone(architecture, weights_path=tmp_path / "drawn.pth")
    model = Classifier(backbone, feature_width(architecture), 2).eval()
    torch.nn.init.normal_(model.head.weight)
    facts, blobs = facts_of(architecture, kind), BlobStore(tmp_path / "blobs")
    artifact = write_artifact(
        blobs, facts, tensors_to_publish(model, kind), golden_outputs(model, SMALL)
    )
    for name, blob in artifact.files.items():
        (tmp_path / name).write_bytes(blobs.read(blob.sha256))
    code = loading_code(facts)
    assert code is not None
    assert "models_cache" not in code
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102 - the point; it raises where golden outputs differ
    assert found["scores"].shape == (2, 2)


def test_the_code_of_a_card_gives_labels_by_calibrated_scores() -> None:
    _, basis = evaluated_labels()
    facts = dataclasses.replace(
        facts_of("squeezenet1_1", task=MULTILABEL, thresholds=(0.3, 0.4)),
        calibration=basis.calibration,
    )
    code = loading_code(facts)
    assert code is not None
    logits = torch.tensor([[1.0, -1.0]])
    found: dict[str, Any] = {"torch": torch, "logits": logits}
    exec(code[code.index("scores =") :], found)  # noqa: S102 - the last lines; the rest is above
    expected = (logits / basis.calibration.temperature).sigmoid()
    torch.testing.assert_close(found["scores"], expected)
    assert found["labels"].tolist() == (expected >= torch.tensor([0.3, 0.4])).tolist()


def test_networks_that_torchvision_cannot_load_plainly_have_no_code() -> None:
    assert loading_code(facts_of("mnasnet0_5")) is None
