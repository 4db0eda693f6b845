"""Which names inside an archive are accepted: refused when odd, never silently repaired.

A name never becomes a path of ours (files are stored under numbers and hashes). It is checked
because it becomes a class name, a line of a report and a line of a log.
"""

from __future__ import annotations

import re

from jobs.datasets.errors import (
    AbsolutePath,
    DuplicateEntry,
    InvalidName,
    NameTooLong,
    PathConflict,
    PathTraversal,
    TooManyEntries,
    printable,
)
from jobs.datasets.limits import IngestLimits

# What changes how text is shown without being seen: bidirectional overrides and marks, and spaces
# of no width. The joiners U+200C and U+200D stay allowed: Persian words and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_DRIVE = re.compile(r"[A-Za-z]:/")
# Finder keeps a folder's own picture in a file whose name ends in a carriage return, and so does
# its shadow under `__MACOSX`. Nobody can rename them; they are skipped as junk.
_FINDER_ICON = re.compile(r"(?:.*[/\\])?(?:\._)?Icon\r", re.DOTALL)
_PACK_AGAIN = "pack again as .tar, or as .zip with UTF-8 names (in 7-Zip the parameter cu=on)"


def fault_of_text(text: str) -> str | None:
    """Return what is wrong with a name as text, or None; shared with class names."""
    if (match := _INVISIBLE.search(text)) is None:
        return None
    return f"contains the invisible character U+{ord(match.group()):04X}"


def decode_name(raw: bytes) -> str:
    """Decode a name's bytes, whatever the archive says about their encoding.

    Raises:
        InvalidName: They are not UTF-8, which includes overlong forms and code pages.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = printable(raw[:200].decode("latin-1"))
        raise InvalidName(shown, "is not encoded in UTF-8", _PACK_AGAIN) from error


def clean_name(name: str, limits: IngestLimits) -> str:
    """Return a name with `/` between its parts and without `./`, after checking it.

    Backslashes count as separators, as some Windows programs write them.

    Raises:
        NameTooLong: The name, a part of it or its depth is over the limit.
        InvalidName: It is empty or holds invisible characters.
        AbsolutePath: It starts at a root or a drive.
        PathTraversal: It contains `..`.
    """
    shown = printable(name)
    if len(name.encode("utf-8", "surrogatepass")) > limits.max_path_bytes:
        raise NameTooLong(shown, limits.max_path_bytes, "bytes")
    visible = name[:-1] if _FINDER_ICON.fullmatch(name) else name
    if fault := fault_of_text(visible):
        raise InvalidName(shown, fault)
    slashed = name.replace("\\", "/")
    if slashed.startswith("/") or _DRIVE.match(slashed):
        raise AbsolutePath(shown)
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PathTraversal(shown)
    if len(parts) > limits.max_depth:
        raise NameTooLong(shown, limits.max_depth, "parts")
    if any(len(part.encode()) > limits.max_component_bytes for part in parts):
        raise NameTooLong(shown, limits.max_component_bytes, "bytes between two slashes")
    return "/".join(parts)


class NameRegister:
    """The names seen so far: finds duplicates, conflicts and too many of them.

    Args:
        limits: Bounds of one name and of their number.
    """

    def __init__(self, limits: IngestLimits) -> None:
        self._limits = limits
        self._files: set[str] = set()
        self._folders: set[str] = {""}
        self._count = 0

    def add(self, name: str, *, is_folder: bool) -> str:
        """Check a name and remember it.

        Returns:
            The clean name; empty for the root folder.

        Raises:
            ArchiveError: As `clean_name`; or the name is taken, or there are too many.
        """
        self._count += 1
        if self._count > self._limits.max_entries:
            raise TooManyEntries(self._limits.max_entries)
        clean = clean_name(name, self._limits)
        if is_folder:
            self._add_folder(clean)
            return clean
        if not clean:
            raise InvalidName(printable(name), "is empty")
        if clean in self._files:
            raise DuplicateEntry(printable(clean))
        if clean in self._folders:
            raise PathConflict(printable(clean))
        self._files.add(clean)
        self._add_folder(clean.rpartition("/")[0])
        return clean

    def _add_folder(self, folder: str) -> None:
        while folder not in self._folders:
            if folder in self._files:
                raise PathConflict(printable(folder))
            self._folders.add(folder)
            folder = folder.rpartition("/")[0]
