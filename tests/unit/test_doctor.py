"""Findings of the data doctor, and that each is documented with its remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.datasets.appearance import Appearance, appearance_of
from jobs.datasets.diagnosis import KINDS, SEVERITIES, Finding, as_severe_as
from jobs.datasets.doctor import examine
from jobs.datasets.manifest import LabelledImage, Manifest, build_manifest
from jobs.training.doctor import odd_features
from tests.images import draw_shape

SHARP = appearance_of(draw_shape("disc", 1, (96, 80)))
Place = tuple[str, str, str]  # hash, split, class


def manifest_of(places: Sequence[Place], size_px: tuple[int, int] = (200, 100)) -> Manifest:
    images = [
        LabelledImage(sha256, 9, f"{split}/{name}/{sha256}.jpg", *size_px, split, name)
        for sha256, split, name in places
    ]
    return build_manifest(images, {name for _, _, name in places})


def enough(*places: Place) -> Manifest:
    """Return a data set with nothing wrong but what is given."""
    usual = [(f"{name}{split}{i}", split, name) for name in "ab" for split in ("train", "val")
             for i in range(10)]  # fmt: skip
    return manifest_of([*usual, *places])


def found(
    manifest: Manifest,
    *,
    seen: Appearance = SHARP,
    modes: dict[str, str] | None = None,
    groups: Sequence[Sequence[str]] = (),
) -> dict[str, Finding]:
    appearances = {image.sha256: seen for image in manifest.images}
    findings = examine(manifest, appearances, modes or {}, groups)
    return {finding.code: finding for finding in findings}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert found(enough()) == {}


def test_same_bytes_in_two_splits_and_under_two_labels_are_errors() -> None:
    places = [("x", "train", "a"), ("x", "val", "a"), ("y", "train", "a"), ("y", "train", "b")]
    findings = found(enough(*places))
    assert set(findings) == {"leakage", "conflicting-labels"}
    assert {finding.severity for finding in findings.values()} == {"error"}
    assert "1 images are in several splits" in findings["leakage"].message
    (group,) = findings["leakage"].items
    assert [(i["split"], i["label"]) for i in group["images"]] == [("train", "a"), ("val", "a")]


@pytest.mark.parametrize(
    ("second", "code", "severity"),
    [
        (("y", "val", "a"), "near-leakage", "error"),
        (("y", "train", "b"), "near-conflicting-labels", "warning"),
        (("y", "train", "a"), "near-duplicates", "info"),
    ],
)
def test_images_that_look_the_same_are_told_by_what_they_do(
    second: Place, code: str, severity: str
) -> None:
    findings = found(enough(("x", "train", "a"), second), groups=[["x", "y"]])
    assert list(findings) == [code]
    assert findings[code].severity == severity


def test_odd_pixels_are_told() -> None:
    blank = appearance_of(np.full((64, 64, 3), 7, dtype=np.uint8))
    assert list(found(enough(), seen=blank)) == ["blank-images"]
    assert list(found(enough(), seen=replace(SHARP, sharpness=3.0))) == ["blurred-images"]
    places = [(i.sha256, i.split, "ab"[i.labels[0]]) for i in enough().images]
    long, small = manifest_of(places, (401, 100)), manifest_of(places, (63, 70))
    assert found(long)["extreme-aspect"].items[0]["aspect"] == 4.01
    assert found(small, seen=replace(SHARP, sharpness=3.0)).keys() == {"small-images"}


def test_images_of_an_unusual_mode_are_told() -> None:
    manifest = enough()
    modes = {image.sha256: "RGB" for image in manifest.images}
    odd = manifest.images[3]
    (finding,) = found(manifest, modes={**modes, odd.sha256: "CMYK"}).values()
    assert finding.code == "odd-modes"
    assert [item["id"] for item in finding.items] == [odd.id]
    assert found(manifest, modes=modes) == {}


def test_rare_classes_are_told() -> None:
    many = [(f"m{i}", "train", "a") for i in range(30)]
    findings = found(enough(*many, ("z", "train", "c"), ("z2", "train", "c")))
    assert list(findings) == ["tiny-classes", "class-too-small-for-val", "imbalanced-classes"]
    assert findings["tiny-classes"].items == [{"class": "c", "train_images": 2}]


def test_a_finding_is_bounded_and_says_how_much_is_not_shown() -> None:
    places = [(f"x{i}", split, "a") for i in range(150) for split in ("train", "val")]
    group = [[f"x{i}" for i in range(150)]]
    findings = found(enough(*places), groups=group)
    leakage, near = findings["leakage"].as_json(), findings["near-leakage"].as_json()
    assert (leakage["count"], len(leakage["items"]), leakage["not_shown"]) == (150, 100, 50)
    shown = near["items"][0]
    assert (shown["count"], len(shown["images"]), shown["not_shown"]) == (300, 20, 280)
    assert len(json.dumps(leakage)) < 100_000


def test_findings_are_chosen_by_severity() -> None:
    findings = [{"severity": severity} for severity in SEVERITIES]
    assert as_severe_as(findings, "never") == []
    assert as_severe_as(findings, "error") == [{"severity": "error"}]
    assert len(as_severe_as(findings, "warning")) == 2


def test_every_kind_of_finding_is_documented_and_every_documented_kind_exists() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data_report.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| .* \| (.*) \|$", text, re.MULTILINE)
    documented = {code: (severity, remedy.rstrip(".")) for code, severity, remedy in rows}
    assert documented == {code: (kind.severity, kind.remedy) for code, kind in KINDS.items()}


def test_what_was_not_looked_for_among_too_many_images_is_said() -> None:
    many = [(f"m{i}", "train", "ab"[i % 2]) for i in range(20_001)]
    (finding,) = odd_features(manifest_of(many), torch.zeros(20_001, 2), lambda: None)
    assert (finding.code, finding.severity) == ("not-compared", "info")
    assert "there are 20001 images, and up to 20000 are compared" in finding.message
    assert {item["check"] for item in finding.items} < set(KINDS)
