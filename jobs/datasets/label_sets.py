"""Several labels of one image as one text, the way metadata files write them: `ant|insect`."""

from __future__ import annotations

from collections.abc import Iterable

SEPARATOR = "|"


def joined(names: Iterable[str]) -> str:
    """Return the one text for a set of labels: sorted, each once; empty for none."""
    return SEPARATOR.join(sorted(set(names)))


def separated(text: str) -> tuple[str, ...]:
    """Return the labels of a text, as written; spaces around them do not count."""
    return tuple(name.strip() for name in text.split(SEPARATOR)) if text.strip() else ()
