"""Gives each unpacked image its class and, where the upload says so, its split."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.datasets.class_names import check_classes
from jobs.datasets.layout import Layout, find_layout
from jobs.datasets.limits import IngestLimits
from jobs.datasets.manifest import LabelledImage
from jobs.datasets.report import Report
from jobs.datasets.unpack import Unpacked


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
        LayoutError: The names, the metadata or the class names cannot be used.
    """
    layout = _layout(unpacked, limits)
    for name in layout.unlabelled:
        report.ignored(name, "not-in-metadata")
        report.warning(name, "unlabelled-image", "no metadata file names this image")
    spellings = {label.spelling for label in layout.labels.values()}
    names = check_classes(spellings | {image.class_name for image in kept}, limits.max_classes)
    return [
        LabelledImage(
            sha256=unpacked.images[name].sha256,
            size_bytes=unpacked.images[name].size_bytes,
            path=name,
            width_px=0,
            height_px=0,
            split=label.split,
            class_name=names[label.spelling],
        )
        for name, label in sorted(layout.labels.items())
    ]


def _layout(unpacked: Unpacked, limits: IngestLimits) -> Layout:
    if unpacked.labels is not None:
        return Layout(unpacked.labels)
    return find_layout(
        unpacked.images.keys(),
        sorted(unpacked.metadata),
        lambda name: unpacked.metadata[name].path.read_bytes(),
        limits.max_entries,
    )
