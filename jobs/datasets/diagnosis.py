"""The form of a finding about a data set, and the list of all that there can be.

A finding is one fact about the whole set ("12 images look mislabelled"), with the images it is
about. What concerns one file of an upload (unreadable, ignored) is in the report's other lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.datasets.errors import printable
from jobs.datasets.label_sets import joined
from jobs.datasets.manifest import ImageEntry, Manifest

INFO, WARNING, ERROR = "info", "warning", "error"
SEVERITIES = (INFO, WARNING, ERROR)
NEVER = "never"  # of `block_on`: no finding keeps a job from training
_MAX_ITEMS = 100
_MAX_IMAGES = 20  # of one group
_MAX_NAMED = 3  # in a message


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Args:
        severity: `error` makes figures wrong, `warning` probably costs quality, `info` is worth
            a look.
        remedy: What to do now.
    """

    severity: str
    remedy: str


#: Found in the upload.
_OF_PIXELS = {
    "leakage": Kind(ERROR, "keep each image in one split, or held-out figures are too good"),
    "conflicting-labels": Kind(ERROR, "keep the right one of them"),
    "near-leakage": Kind(ERROR, "put all copies of an image into one split"),
    "near-conflicting-labels": Kind(WARNING, "look at the groups and correct the labels"),
    "near-duplicates": Kind(INFO, "leave copies out where they outnumber other images"),
    "blank-images": Kind(WARNING, "leave them out: there is nothing to learn from"),
    "small-images": Kind(WARNING, "upload larger originals if there are any"),
    "extreme-aspect": Kind(WARNING, "crop them to what matters: a network sees the centre square"),
    "blurred-images": Kind(INFO, "replace them by sharp ones, unless predictions will be of such"),
    "odd-modes": Kind(INFO, "make sure that images to predict are of the same modes"),
    "tiny-classes": Kind(WARNING, "add images of these classes, or merge them"),
    "class-too-small-for-val": Kind(WARNING, "add images: this class cannot be judged"),
    "imbalanced-classes": Kind(INFO, "add images of the rare classes and look at their own recall"),
}
#: Found by a job, from the features of its backbone and out-of-fold predictions.
_OF_FEATURES = {
    "likely-mislabelled": Kind(WARNING, "look at them, the most suspicious first; correct labels"),
    "similar-across-splits": Kind(WARNING, "put crops and mirror images into one split"),
    "similar-images": Kind(INFO, "leave copies out where they outnumber other images"),
    "outliers": Kind(INFO, "leave out what shows none of the classes"),
    "not-compared": Kind(INFO, "to look for them, run a job on a part of the images"),
}
KINDS: Mapping[str, Kind] = {**_OF_PIXELS, **_OF_FEATURES}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        code: A key of `KINDS`.
        fact: What, which and how many; the kind's remedy follows it.
        items: The images, groups or classes it is about, the most important first.
    """

    code: str
    fact: str
    items: Sequence[Mapping[str, Any]]

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return KINDS[self.code].severity

    @property
    def message(self) -> str:
        """The sentence for people."""
        return f"{self.fact}; {KINDS[self.code].remedy}"

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form, with at most a hundred items."""
        shown = list(self.items[:_MAX_ITEMS])
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "count": len(self.items),
            "items": shown,
            "not_shown": len(self.items) - len(shown),
        }


def as_severe_as(findings: Iterable[Mapping[str, Any]], severity: str) -> list[dict[str, Any]]:
    """Return the findings (JSON form) of at least a severity; none for `never`."""
    if severity == NEVER:
        return []
    wanted = SEVERITIES[SEVERITIES.index(severity) :]
    return [dict(finding) for finding in findings if finding["severity"] in wanted]


def shown_image(manifest: Manifest, image: ImageEntry, **measured: object) -> dict[str, Any]:
    """Return how a finding names an image, with what was measured of it."""
    return {
        "id": image.id,
        "path": printable(image.path),
        "split": image.split,
        "label": joined(manifest.classes[label] for label in image.labels),
        **measured,
    }


def shown_group(manifest: Manifest, images: Sequence[ImageEntry]) -> dict[str, Any]:
    """Return how a finding names images that belong together."""
    shown = [shown_image(manifest, image) for image in images[:_MAX_IMAGES]]
    return {"images": shown, "count": len(images), "not_shown": len(images) - len(shown)}


def named(texts: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    shown = ", ".join(printable(text) for text in texts[:_MAX_NAMED])
    more = len(texts) - _MAX_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def paths_of(images: Sequence[ImageEntry]) -> str:
    """Return the paths of the first few of some images, and how many more there are."""
    return named([image.path for image in images])
