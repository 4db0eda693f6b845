"""Which images are held out, when the upload does not say.

Drawn by content: an image's place depends on its bytes and on how many its class has, so the same
images give the same split in any order, in any archive, on any machine. Images of an earlier
version keep theirs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs.datasets.label_sets import separated
from jobs.datasets.manifest import TRAIN, VAL, LabelledImage
from models_cache.durable import sha256_of_bytes

VAL_FRACTION = 0.2
_SALT = "graft-val-1"  # a new salt would be a new rule: published splits would no longer repeat


def draw_val(
    images: Sequence[LabelledImage],
    kept: Sequence[LabelledImage] = (),
    val_fraction: float = VAL_FRACTION,
    group_of: Mapping[str, str] | None = None,
) -> list[LabelledImage]:
    """Give every image without a split one: a share of each class to `val`, the rest to `train`.

    A class with at least two images has at least one on each side, as far as `kept` and groups
    allow: images that look the same are never drawn apart, which would be leakage of our making.

    Args:
        images: Those with an empty split are drawn, the others stay.
        kept: Images of the parent version; they count, and keep their split.
        val_fraction: Share of each class that is held out, in 0..1.
        group_of: Name of the group of images that look the same, by hash, if it is in one.

    Returns:
        `images` in their order, every split decided.
    """
    groups = group_of or {}
    if any(image.several for image in images):
        return _draw_by_label(images, kept, val_fraction, groups)
    undecided: dict[str, list[str]] = defaultdict(list)
    decided: dict[str, Counter[str]] = defaultdict(Counter)
    for image in (*kept, *images):
        if image.split:
            decided[image.class_name][image.split] += 1
        else:
            undecided[image.class_name].append(image.sha256)
    bound = _bound(kept, images, groups)
    held_out = {
        (name, sha256)
        for name, hashes in undecided.items()
        for sha256 in _held_out(hashes, decided[name], val_fraction, groups, bound)
    }
    return [
        image
        if image.split
        else replace(image, split=VAL if (image.class_name, image.sha256) in held_out else TRAIN)
        for image in images
    ]


def _draw_by_label(
    images: Sequence[LabelledImage],
    kept: Sequence[LabelledImage],
    val_fraction: float,
    groups: Mapping[str, str],
) -> list[LabelledImage]:
    """Draw where images have any number of labels: the share of each label, the rarest first.

    Source: Sechidis et al. 2011, On the stratification of multi-label data, ECML PKDD (iterative
    stratification); ties are broken by content here, not at random.
    """
    splits = {(i.class_name, i.sha256): i.split for i in (*kept, *images)}
    labels = {place: separated(place[0]) or ("",) for place in splits}  # "": none at all
    counts = Counter(name for names in labels.values() for name in names)
    bound = _bound(kept, images, groups)
    for name in sorted(counts, key=lambda name: (counts[name], name)):
        of_label = [place for place in splits if name in labels[place]]
        decided = Counter(splits[place] for place in of_label)
        undecided = [place for place in of_label if not splits[place]]
        hashes = [sha256 for _, sha256 in undecided]
        held_out = set(_held_out(hashes, decided, val_fraction, groups, bound))
        splits |= {place: VAL if place[1] in held_out else TRAIN for place in undecided}
    return [replace(image, split=splits[image.class_name, image.sha256]) for image in images]


def _bound(
    kept: Sequence[LabelledImage], images: Sequence[LabelledImage], groups: Mapping[str, str]
) -> dict[str, str]:
    """Return the split of each group that is not free: some are decided, or classes differ."""
    members: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in (*kept, *images):
        if image.sha256 in groups:
            members[groups[image.sha256]].append(image)
    bound = {}
    for group, alike in members.items():
        splits = {image.split for image in alike} - {""}
        if splits or len({image.class_name for image in alike}) > 1:
            bound[group] = VAL if splits == {VAL} else TRAIN
    return bound


def _held_out(
    hashes: Sequence[str],
    decided: Counter[str],
    val_fraction: float,
    groups: Mapping[str, str],
    bound: Mapping[str, str],
) -> list[str]:
    total = len(hashes) + decided[TRAIN] + decided[VAL]
    if total < 2:
        return []
    wanted = max(1, round(val_fraction * total)) - decided[VAL]
    if not decided[TRAIN]:
        wanted = min(wanted, len(hashes) - 1)  # one has to be left to learn from
    ranked = sorted(set(hashes), key=lambda sha256: sha256_of_bytes(f"{_SALT}/{sha256}".encode()))
    together: dict[str, list[str]] = defaultdict(list)
    for sha256 in ranked:
        together[groups.get(sha256, sha256)].append(sha256)
    chosen: list[str] = []
    for group, members in together.items():
        is_free = group not in bound and len(chosen) + len(members) <= wanted
        if is_free or bound.get(group) == VAL:
            chosen += members
    return chosen
