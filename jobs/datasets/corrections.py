"""Corrected labels: an upload that says what images of its parent really show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jobs.datasets.manifest import LabelledImage


def corrected(
    images: Sequence[LabelledImage], kept: Sequence[LabelledImage]
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return the images of a correcting upload, and what stays of the parent's beside them.

    An image that the parent has with another label is taken out of it and keeps its split: one
    that a model was judged by is still one that it does not learn from.

    Args:
        images: Of the upload.
        kept: Of the parent version.
    """
    said = {image.sha256: image.class_name for image in images}
    replaced = {
        image.sha256: image.split
        for image in kept
        if said.get(image.sha256, image.class_name) != image.class_name
    }
    staying = [image for image in kept if image.sha256 not in replaced]
    return [replace(i, split=replaced.get(i.sha256, i.split)) for i in images], staying
