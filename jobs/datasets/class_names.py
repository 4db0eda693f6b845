"""Which class names are accepted, and when two of them are too alike.

Names are kept exactly, in NFC, from upload to prediction: `01` and `1`, `None`, emoji and formulas
are text like any other. Refused is what nobody can see or tell apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from jobs.datasets.archive_names import fault_of_text
from jobs.datasets.errors import (
    ClassCollision,
    InvalidClassName,
    NeedTwoClasses,
    ReservedClassName,
    TooManyClasses,
    printable,
)

_MAX_BYTES = 255
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
)
_MAX_NAMED = 10
# Nothing to see, like the category Cf (soft hyphens, joiners, tags): variation selectors, the
# grapheme joiner, fillers of Hangul and Khmer. Source: Unicode 16, Default_Ignorable_Code_Point.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def class_name(spelling: str) -> str:
    """Return a class name in NFC, after checking it.

    Raises:
        InvalidClassName: Empty, too long, or with invisible characters.
        ReservedClassName: A Windows device.
    """
    name = unicodedata.normalize("NFC", spelling)
    shown = printable(name)
    if not _seen(name).strip():
        raise InvalidClassName(shown, "is empty")
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        raise InvalidClassName(shown, f"is longer than {_MAX_BYTES} bytes")
    if fault := fault_of_text(name):
        raise InvalidClassName(shown, fault)
    if name.partition(".")[0].strip().casefold() in _RESERVED:
        raise ReservedClassName(shown)
    return name


def check_classes(spellings: Iterable[str], max_classes: int) -> dict[str, str]:
    """Check all class names of a dataset together.

    Args:
        spellings: As written in the upload (and in NFC for those of a parent version).
        max_classes: How many are accepted.

    Returns:
        The NFC name of each spelling.

    Raises:
        ClassCollision: Two spellings differ only in case, Unicode form, invisible characters,
            or dots and spaces at their ends; they are never merged silently.
        InvalidClassName: As `class_name`.
        ReservedClassName: As `class_name`.
        NeedTwoClasses: Fewer than two.
        TooManyClasses: More than `max_classes`.
    """
    names: dict[str, str] = {}
    by_key: dict[str, str] = {}
    for spelling in sorted(set(spellings)):
        names[spelling] = class_name(spelling)
        other = by_key.setdefault(_key(spelling), spelling)
        if other != spelling:
            raise ClassCollision(printable(other), printable(spelling))
    if len(names) > max_classes:
        raise TooManyClasses(len(names), max_classes)
    if len(names) < 2:
        raise NeedTwoClasses([printable(name) for name in names][:_MAX_NAMED])
    return names


def _key(spelling: str) -> str:
    folded = unicodedata.normalize("NFC", _seen(spelling)).casefold()
    return unicodedata.normalize("NFC", folded).strip().rstrip(". ")


def _seen(text: str) -> str:
    """Return what is left to see of a text; joiners stay in names, but tell none apart."""
    return "".join(c for c in _UNSEEN.sub("", text) if unicodedata.category(c) != "Cf")
