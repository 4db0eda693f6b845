"""What of an upload is left out although it can be decoded: placeholders and exact duplicates.

Left out is only what adds nothing (exact duplicates within a class and split) or what is no
picture of anything (a placeholder); everything else is kept as given, and `doctor` tells of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.datasets.manifest import LabelledImage
from jobs.datasets.report import Report

# The rule for placeholders ("image not available" pictures, served by photo sites for pictures
# that are gone). All of it has to hold, so that sets of drawings or of GIFs lose nothing.
_PHOTOGRAPH_FRACTION = 0.95  # of the images are JPEG: a set of photographs
_SMALLEST_SET_IMAGES = 20  # below this a fraction says nothing
_MAX_COLOURS = 64  # a photograph saved as GIF uses nearly all of its 256
_FLAT_FRACTION = 0.5  # of the pixels have one colour
PLACEHOLDER_RULE = (
    "a GIF with fewer than 64 colours, at least half of its pixels of one colour, among images of "
    "which at least 95% are JPEG, is taken for a placeholder and left out"
)


def leave_out_placeholders(
    images: Sequence[LabelledImage], facts: Mapping[str, Mapping[str, Any]], report: Report
) -> list[LabelledImage]:
    """Return the images without placeholders; each is named in the report with the rule.

    A GIF among photographs that is no placeholder by the rule is kept and named as well.

    Args:
        images: All of the upload that can be decoded.
        facts: By hash; see `decoding.Decoded.facts`.
        report: Gets the findings.
    """
    formats = Counter(facts[image.sha256]["format"] for image in images)
    enough = len(images) >= _SMALLEST_SET_IMAGES
    photographs = enough and formats["JPEG"] >= _PHOTOGRAPH_FRACTION * len(images)
    kept = []
    for image in images:
        fact = facts[image.sha256]
        if fact["animated"]:
            report.warning(image.path, "animated", "only its first frame is used")
        if not photographs or fact["format"] != "GIF":
            kept.append(image)
        elif _is_flat(fact):
            report.ignored(image.path, "placeholder")
            report.warning(image.path, "placeholder-image", PLACEHOLDER_RULE)
        else:
            report.warning(image.path, "odd-format", "a GIF among photographs; it is used")
            kept.append(image)
    return kept


def leave_out_duplicates(
    images: Iterable[LabelledImage], kept: Sequence[LabelledImage], report: Report
) -> list[LabelledImage]:
    """Return the images without exact duplicates in the same class and split; the first stays.

    Args:
        images: Of the upload; an empty split means that it is not decided.
        kept: Of the parent version.
        report: Gets the duplicates.
    """
    first: dict[tuple[str, str, str], str] = {}
    for image in kept:
        first[image.class_name, image.split, image.sha256] = image.path
        first[image.class_name, "", image.sha256] = image.path
    remaining = []
    for image in images:
        key = (image.class_name, image.split, image.sha256)
        if key in first:
            report.duplicate(image.path, first[key], image.sha256)
        else:
            first[key] = image.path
            remaining.append(image)
    return remaining


def _is_flat(fact: Mapping[str, Any]) -> bool:
    few: bool = fact["colours"] < _MAX_COLOURS
    return few and bool(fact["largest_colour_fraction"] >= _FLAT_FRACTION)
