"""What a dataset is: its classes, and for each image its bytes, size, split and label.

A manifest is a blob, so it never changes. Its digest covers what training depends on and nothing
else: the order in which an archive held the files, or their names, make no other dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.datasets.label_sets import joined, separated
from models_cache.artifacts import MULTILABEL
from models_cache.blobs import Blob, BlobStore
from models_cache.durable import canonical_json, sha256_of_bytes

FORMAT = 1
TASK = "classification"
UNLABELLED = "unlabelled"  # nothing can be learned from it; a model can look at it
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
_ID_DIGITS = 16


@dataclass(frozen=True)
class ImageEntry:
    """One image of a dataset.

    Args:
        id: Stable over versions as long as content, split and class name stay.
        sha256: Of the original file; its blob.
        size: Bytes of the original file.
        path: Its name in the archive that brought it.
        width: Pixels, upright.
        height: Pixels, upright.
        split: `train`, `val` or `test`.
        label: Index into the manifest's classes; with several labels, ascending indices.
    """

    id: str
    sha256: str
    size: int
    path: str
    width: int
    height: int
    split: str
    label: int | tuple[int, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices into the manifest's classes: one, or any number of them."""
        return (self.label,) if isinstance(self.label, int) else self.label


@dataclass(frozen=True)
class LabelledImage:
    """An image on its way into a manifest, its class still by name.

    Args:
        sha256: Of the original file.
        size_bytes: Of the original file.
        path: Its name in the archive.
        width_px: Upright.
        height_px: Upright.
        split: `train`, `val`, `test`; empty while it is not decided.
        class_name: In NFC; with several labels all of them, see `label_sets`.
        several: Whether it is one of a dataset whose images have any number of labels.
    """

    sha256: str
    size_bytes: int
    path: str
    width_px: int
    height_px: int
    split: str
    class_name: str
    several: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its classes: one, or any number of them."""
        return separated(self.class_name) if self.several else (self.class_name,)


@dataclass(frozen=True)
class Manifest:
    """A dataset: immutable, named by the SHA-256 of its canonical form.

    Args:
        classes: Names in NFC; an image's label is an index into them. Sorted, those that a later
            version added behind the others: a class keeps its index.
        images: Sorted by split, label and hash.
        task: The task type.
    """

    classes: tuple[str, ...]
    images: tuple[ImageEntry, ...]
    task: str = TASK

    @property
    def digest(self) -> str:
        """SHA-256 over task, classes and each image's content, split and label."""
        images = [[image.sha256, image.split, image.label] for image in self.images]
        return sha256_of_bytes(canonical_json([self.task, list(self.classes), images]))

    def of_split(self, split: str) -> tuple[ImageEntry, ...]:
        """Return the images of one split, in manifest order."""
        return tuple(image for image in self.images if image.split == split)

    def labelled(self) -> list[LabelledImage]:
        """Return the images with their class names, as a next version takes them over."""
        return [
            LabelledImage(
                sha256=image.sha256,
                size_bytes=image.size,
                path=image.path,
                width_px=image.width,
                height_px=image.height,
                split=image.split,
                class_name=joined(self.classes[label] for label in image.labels),
                several=self.task != TASK,
            )
            for image in self.images
        ]

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return `{split: {"images": n, "per_class": {name: n}}}`; `test` only if there is one."""
        images_of = Counter(image.split for image in self.images)
        counted = Counter((image.split, label) for image in self.images for label in image.labels)
        found: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            per_class = {name: counted[split, label] for label, name in enumerate(self.classes)}
            if images_of[split] or split != TEST:
                found[split] = {"images": images_of[split], "per_class": per_class}
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form that is stored."""
        return {
            "format": FORMAT,
            "task": self.task,
            "classes": list(self.classes),
            "images": [asdict(image) for image in self.images],
        }

    def store(self, blobs: BlobStore) -> Blob:
        """Store the canonical form as a blob."""
        return blobs.put_bytes(canonical_json(self.as_json()))

    @classmethod
    def load(cls, blobs: BlobStore, sha256: str) -> Manifest:
        """Read a manifest back.

        Raises:
            BlobMissing: There is no such blob.
            BlobCorrupt: Its bytes changed on disk.
            ValueError: It was written in a format that is not known here.
        """
        value = json.loads(blobs.read(sha256))
        if value["format"] != FORMAT:
            raise ValueError(f"manifest {sha256} has format {value['format']}, known is {FORMAT}")
        if value["task"] != TASK:
            value["images"] = [i | {"label": tuple(i["label"])} for i in value["images"]]
        images = tuple(ImageEntry(**image) for image in value["images"])
        return cls(tuple(value["classes"]), images, value["task"])


def build_manifest(
    images: Iterable[LabelledImage], classes: Iterable[str], kept: Sequence[str] = ()
) -> Manifest:
    """Put images into the one order and give each its id.

    Args:
        images: Every split decided, no two of the same content, split and class.
        classes: All names; sorted here, so that the order of an upload has no influence.
        kept: Those of the parent version in its order: they stay in front.
    """
    names = (*kept, *sorted(set(classes) - set(kept)))
    labels = {name: label for label, name in enumerate(names)}
    images = list(images)
    task = TASK
    if any(image.several for image in images):
        task = MULTILABEL if names else UNLABELLED
    entries = [_entry(image, sorted(labels[name] for name in image.names)) for image in images]
    entries.sort(key=lambda entry: (entry.split, entry.labels, entry.sha256))
    assert len({entry.id for entry in entries}) == len(entries), "two images of one id"
    return Manifest(names, tuple(entries), task)


def image_id(split: str, class_name: str, sha256: str) -> str:
    """Return the id of an image: 16 hex digits."""
    return sha256_of_bytes(f"{split}/{class_name}/{sha256}".encode())[:_ID_DIGITS]


def _entry(image: LabelledImage, labels: Sequence[int]) -> ImageEntry:
    return ImageEntry(
        id=image_id(image.split, image.class_name, image.sha256),
        sha256=image.sha256,
        size=image.size_bytes,
        path=image.path,
        width=image.width_px,
        height=image.height_px,
        split=image.split,
        label=tuple(labels) if image.several else labels[0],
    )
