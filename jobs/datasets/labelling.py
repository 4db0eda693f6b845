"""Gives each unpacked image its class and, where the upload says so, its split."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.datasets.class_names import check_classes
from jobs.datasets.errors import LabelKindMismatch
from jobs.datasets.label_sets import joined, separated
from jobs.datasets.layout import Layout, find_layout
from jobs.datasets.limits import IngestLimits
from jobs.datasets.manifest import TRAIN, LabelledImage
from jobs.datasets.report import Report
from jobs.datasets.unpack import Unpacked

_KINDS = ("several labels", "one label")


def label_images(
    unpacked: Unpacked, kept: Sequence[LabelledImage], limits: IngestLimits, report: Report
) -> list[LabelledImage]:
    """Return the images of an upload by name, their sizes not known yet.

    Args:
        unpacked: The upload.
        kept: Images of the parent version; their classes are the dataset's as well.
        limits: How many classes there may be.
        report: Gets the images that a metadata file does not name.

    Raises:
        LabelKindMismatch: The parent's images have one label each and these several, or reverse.
        LayoutError: The names, the metadata or the class names cannot be used.
    """
    layout = _layout(unpacked, limits)
    for name in layout.unlabelled:
        report.ignored(name, "not-in-metadata")
        report.warning(name, "unlabelled-image", "no metadata file names this image")
    if any(image.several != layout.several for image in kept):
        raise LabelKindMismatch(*_KINDS[:: 1 if layout.several else -1])
    written = {label.spelling for label in layout.labels.values()}
    if layout.several:
        parts = {spelling: separated(spelling) for spelling in written}
    else:
        parts = {spelling: (spelling,) for spelling in written}
    known = {name for image in kept for name in image.names}
    classes = check_classes(known.union(*parts.values()), limits.max_classes)
    names = {spelling: joined(map(classes.__getitem__, part)) for spelling, part in parts.items()}
    return [
        LabelledImage(
            sha256=unpacked.images[name].sha256,
            size_bytes=unpacked.images[name].size_bytes,
            path=name,
            width_px=0,
            height_px=0,
            split=label.split,
            class_name=names[label.spelling],
            several=layout.several,
        )
        for name, label in sorted(layout.labels.items())
    ]


def unlabelled_images(unpacked: Unpacked) -> list[LabelledImage]:
    """Return the images of an upload that has no labels, wherever they lie in it."""
    return [
        LabelledImage(
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            path=name,
            width_px=0,
            height_px=0,
            split=TRAIN,
            class_name="",
            several=True,
        )
        for name, file in sorted(unpacked.images.items())
    ]


def _layout(unpacked: Unpacked, limits: IngestLimits) -> Layout:
    if unpacked.labels is not None:
        return Layout(unpacked.labels, several=unpacked.several)
    return find_layout(
        unpacked.images.keys(),
        sorted(unpacked.metadata),
        lambda name: unpacked.metadata[name].path.read_bytes(),
        limits.max_entries,
    )
