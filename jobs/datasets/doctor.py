"""What is wrong with a data set as far as its pixels and counts tell: pure functions.

What needs a network is in `jobs.training.doctor`; what each finding means is in
`jobs.datasets.diagnosis` and docs/data_report.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from jobs.datasets.appearance import Appearance
from jobs.datasets.diagnosis import Finding, named, shown_group, shown_image
from jobs.datasets.errors import printable
from jobs.datasets.manifest import TRAIN, VAL, ImageEntry, Manifest
from models_cache.contrast import BLANK_CONTRAST

_SMALL_PX = 64  # of the shorter side: a quarter of what packs have
_EXTREME_ASPECT = 3.0  # longer over shorter side: the centre square is a third of the image
_SHARPNESS_OF_BLUR = 30.0  # docs/experiments.md
_TINY_CLASS_IMAGES = 10  # to train with
_IMBALANCE = 10.0  # images of the largest over those of the smallest class

Measured = dict[str, float | int]


def examine(
    manifest: Manifest,
    appearances: Mapping[str, Appearance],
    modes: Mapping[str, str],
    groups: Sequence[Sequence[str]],
) -> list[Finding]:
    """Return everything that is found.

    Args:
        manifest: The data set.
        appearances: By hash of the bytes, of all its images.
        modes: How pixels were stored, by hash; images of an earlier version may be missing.
        groups: Hashes of images that look the same (`near_duplicates`).
    """
    return [
        *_exact_copies(manifest),
        *_near_copies(manifest, groups),
        *_odd_pixels(manifest, appearances),
        *_odd_modes(manifest, modes),
        *_small_classes(manifest),
    ]


def copies_of(manifest: Manifest) -> dict[str, list[ImageEntry]]:
    """Return the images of a manifest by the hash of their bytes."""
    copies: dict[str, list[ImageEntry]] = defaultdict(list)
    for image in manifest.images:
        copies[image.sha256].append(image)
    return copies


def _exact_copies(manifest: Manifest) -> Iterator[Finding]:
    copies = [same for same in copies_of(manifest).values() if len(same) > 1]
    leaking = [same for same in copies if _splits(same) > 1]
    if leaking:
        fact = f"{len(leaking)} images are in several splits byte for byte ({_example(leaking)})"
        yield _of_groups("leakage", fact, manifest, leaking)
    conflicting = [same for same in copies if _labels(same) > 1]
    if conflicting:
        fact = f"{len(conflicting)} images have several labels ({_example(conflicting)})"
        yield _of_groups("conflicting-labels", fact, manifest, conflicting)


def _near_copies(manifest: Manifest, groups: Sequence[Sequence[str]]) -> Iterator[Finding]:
    copies = copies_of(manifest)
    alike = [[image for sha256 in group for image in copies[sha256]] for group in groups]
    leaking = [group for group in alike if _splits(group) > 1]
    conflicting = [group for group in alike if _labels(group) > 1]
    harmless = [group for group in alike if _splits(group) == _labels(group) == 1]
    for code, found, what in (
        ("near-leakage", leaking, "are spread over several splits"),
        ("near-conflicting-labels", conflicting, "have different labels"),
        ("near-duplicates", harmless, "are within one class and split"),
    ):
        if found:
            fact = f"{len(found)} groups of images that look the same {what} ({_example(found)})"
            yield _of_groups(code, fact, manifest, found)


def _odd_pixels(manifest: Manifest, appearances: Mapping[str, Appearance]) -> Iterator[Finding]:
    def blank(image: ImageEntry) -> Measured | None:
        contrast = appearances[image.sha256].contrast
        return {"contrast": contrast} if contrast < BLANK_CONTRAST else None

    def small(image: ImageEntry) -> Measured | None:
        size: Measured = {"width_px": image.width, "height_px": image.height}
        return size if min(image.width, image.height) < _SMALL_PX else None

    def extreme(image: ImageEntry) -> Measured | None:
        aspect = max(image.width, image.height) / min(image.width, image.height)
        return {"aspect": round(aspect, 2)} if aspect > _EXTREME_ASPECT else None

    def blurred(image: ImageEntry) -> Measured | None:
        seen = appearances[image.sha256]
        is_blurred = seen.sharpness < _SHARPNESS_OF_BLUR and blank(image) is None
        return {"sharpness": seen.sharpness} if is_blurred and small(image) is None else None

    tests: tuple[tuple[str, Callable[[ImageEntry], Measured | None], str], ...] = (
        ("blank-images", blank, "are of one colour"),
        ("small-images", small, f"have a side below {_SMALL_PX} pixels"),
        ("extreme-aspect", extreme, f"are over {_EXTREME_ASPECT:g} times longer on one side"),
        ("blurred-images", blurred, "have no sharp edge"),
    )
    for code, test, what in tests:
        found = {image: measured for image in manifest.images if (measured := test(image))}
        if found:
            paths = [image.path for image in found]
            fact = f"{len(found)} of {len(manifest.images)} images {what} ({named(paths)})"
            items = [shown_image(manifest, image, **found[image]) for image in found]
            yield Finding(code, fact, items)


def _odd_modes(manifest: Manifest, modes: Mapping[str, str]) -> Iterator[Finding]:
    known = [image for image in manifest.images if image.sha256 in modes]
    counted = Counter(modes[image.sha256] for image in known).most_common()
    if len(counted) > 1:
        usual = counted[0][0]
        odd = [image for image in known if modes[image.sha256] != usual]
        told = ", ".join(f"{count} are {mode}" for mode, count in counted[1:])
        fact = f"most images are stored as {usual}, but {told} ({named([i.path for i in odd])})"
        items = [shown_image(manifest, image, mode=modes[image.sha256]) for image in odd]
        yield Finding("odd-modes", fact, items)


def _small_classes(manifest: Manifest) -> Iterator[Finding]:
    counted = Counter((image.split, label) for image in manifest.images for label in image.labels)
    names = [printable(name) for name in manifest.classes]
    train = {name: counted[TRAIN, label] for label, name in enumerate(names)}
    tiny = {name: count for name, count in train.items() if count < _TINY_CLASS_IMAGES}
    if tiny:
        fact = (
            f"{len(tiny)} of {len(names)} classes have fewer than {_TINY_CLASS_IMAGES} images "
            f"to train with ({named(list(tiny))})"
        )
        yield Finding("tiny-classes", fact, _counts(tiny))
    unjudged = {name: train[name] for label, name in enumerate(names) if not counted[VAL, label]}
    if unjudged:
        fact = (
            f"{len(unjudged)} of {len(names)} classes have no val images ({named(list(unjudged))})"
        )
        yield Finding("class-too-small-for-val", fact, _counts(unjudged))
    if not train:
        return  # images without labels
    most, fewest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] >= _IMBALANCE * train[fewest]:
        fact = (
            f"class {most!r} has {train[most]} images to train with, "
            f"class {fewest!r} only {train[fewest]}"
        )
        rare = {name: n for name, n in train.items() if train[most] >= _IMBALANCE * n}
        yield Finding("imbalanced-classes", fact, _counts(rare))


def _counts(classes: Mapping[str, int]) -> list[dict[str, str | int]]:
    rarest_first = sorted(classes.items(), key=lambda item: item[1])
    return [{"class": name, "train_images": count} for name, count in rarest_first]


def _splits(images: Sequence[ImageEntry]) -> int:
    return len({image.split for image in images})


def _labels(images: Sequence[ImageEntry]) -> int:
    return len({image.label for image in images})


def _example(groups: Sequence[Sequence[ImageEntry]]) -> str:
    """Name the first group, each image with its split."""
    return "for example " + named([f"{image.split}: {image.path}" for image in groups[0]])


def _of_groups(
    code: str, fact: str, manifest: Manifest, groups: Sequence[Sequence[ImageEntry]]
) -> Finding:
    return Finding(code, fact, [shown_group(manifest, group) for group in groups])
