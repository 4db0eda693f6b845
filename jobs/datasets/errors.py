"""Why an upload cannot become a dataset; the family `DatasetError` of `jobs.errors`.

* ArchiveTypeUnknown             it is none of the accepted kinds (the only one that HTTP calls 415)
* ArchiveError                   the archive is hostile, damaged or too big
    + CorruptArchive, AmbiguousArchive, EncryptedArchive, UnsupportedCompression,
      PathTraversal, AbsolutePath, InvalidName, NameTooLong, NameMismatch, DuplicateEntry,
      PathConflict, LinkNotAllowed, SpecialFile, SparseFile,
      ArchiveBomb, OverlappingEntries, TooManyEntries, EntryTooLarge, ArchiveTooLarge
* ArrayError                     see `array_errors`
* LayoutError                    the files do not say which image has which label
    + AmbiguousLayout, EmptyDataset, NeedTwoClasses, TooManyClasses, ClassCollision,
      InvalidClassName, ReservedClassName, ClassWithoutImages, InvalidMetadata,
      LabelKindMismatch
* TooManyUnreadable, TooManyPixels  the images themselves

Names of entries come from strangers: `printable` is applied before they become a fact.
"""

from __future__ import annotations

from typing import Any

# Named again so that whoever knows these errors knows those: they cross processes by their code
from jobs.datasets.array_errors import ArrayError as ArrayError
from jobs.errors import DatasetError
from models_cache.errors import leaf

_MAX_PRINTED_CHARACTERS = 200


def printable(text: str) -> str:
    """Return at most 200 characters of `text`, with everything invisible escaped."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text[:_MAX_PRINTED_CHARACTERS]
    )
    return shown[:_MAX_PRINTED_CHARACTERS]


@leaf
class ArchiveTypeUnknown(DatasetError):
    """The first bytes are no archive's that is accepted; never decided by a name."""

    code = "archive-type-unknown"
    sentence = (
        "the upload is {found}; send images in a .zip, .tar or .tar.gz, or arrays in an .npz or .h5"
    )
    found: str


class ArchiveError(DatasetError):
    """An archive is hostile, damaged or too big; nothing of it is kept."""

    code = "unsafe-archive"


@leaf
class CorruptArchive(ArchiveError):
    """The archive is truncated, damaged or inconsistent."""

    code = "corrupt-archive"
    sentence = "the archive is damaged at {entry!r}: {reason}; pack it again"
    entry: str
    reason: str


@leaf
class AmbiguousArchive(ArchiveError):
    """Two programs could see different files in it."""

    code = "ambiguous-archive"
    sentence = "the archive can be read in two ways: {reason}; pack it again"
    reason: str


@leaf
class EncryptedArchive(ArchiveError):
    """An entry is encrypted."""

    code = "encrypted-archive"
    sentence = "{entry!r} is encrypted; pack it without a password"
    entry: str


@leaf
class UnsupportedCompression(ArchiveError):
    """An entry is compressed by something other than deflate."""

    code = "unsupported-compression"
    sentence = "{entry!r} uses compression method {method}; use deflate or none"
    entry: str
    method: int


@leaf
class PathTraversal(ArchiveError):
    """A name leads out of its folder."""

    code = "path-traversal"
    sentence = "the name {entry!r} contains '..'; rename it"
    entry: str


@leaf
class AbsolutePath(ArchiveError):
    """A name starts at a root or a drive."""

    code = "absolute-path"
    sentence = "the name {entry!r} is an absolute path; pack relative ones"
    entry: str


@leaf
class InvalidName(ArchiveError):
    """A name is not clean UTF-8 text."""

    code = "invalid-name"
    sentence = "the name {entry!r} {reason}; {advice}"
    entry: str
    reason: str
    advice: str = "rename it"


@leaf
class NameTooLong(ArchiveError):
    """A name, one of its parts or its depth is over the limit."""

    code = "name-too-long"
    sentence = "the name {entry!r}... has more than {limit} {unit}; shorten it"
    entry: str
    limit: int
    unit: str


@leaf
class NameMismatch(ArchiveError):
    """The two places where a zip stores a name disagree."""

    code = "name-mismatch"
    sentence = "{entry!r} has another name in its own header; pack the archive again"
    entry: str


@leaf
class DuplicateEntry(ArchiveError):
    """Two files have the same name."""

    code = "duplicate-entry"
    sentence = "{entry!r} is in the archive twice; remove one"
    entry: str


@leaf
class PathConflict(ArchiveError):
    """The same name is a file and a folder."""

    code = "path-conflict"
    sentence = "{entry!r} is a file and a folder at once; rename one"
    entry: str


@leaf
class LinkNotAllowed(ArchiveError):
    """Links are refused, not resolved."""

    code = "link-not-allowed"
    sentence = "{entry!r} is a link; pack the file it points to"
    entry: str


@leaf
class SpecialFile(ArchiveError):
    """Only regular files and folders exist in an upload."""

    code = "special-file"
    sentence = "{entry!r} is a device, pipe or something else that is no regular file; leave it out"
    entry: str


@leaf
class SparseFile(ArchiveError):
    """A few bytes that claim to be terabytes of zeros."""

    code = "sparse-file"
    sentence = "{entry!r} is a sparse file; pack it as a plain one"
    entry: str


@leaf
class ArchiveBomb(ArchiveError):
    """It unpacks to far more than its size can honestly hold."""

    code = "archive-bomb"
    sentence = "{entry!r} unpacks to more than {max_ratio} times its size; it was not unpacked"
    entry: str
    max_ratio: int


@leaf
class OverlappingEntries(ArchiveError):
    """Two entries share bytes of the archive."""

    code = "overlapping-entries"
    sentence = "{entry!r} shares bytes with the entry behind it; pack the archive again"
    entry: str


@leaf
class TooManyEntries(ArchiveError):
    """More files and folders than are accepted."""

    code = "too-many-entries"
    sentence = "the archive has more than {limit} entries; split the upload"
    limit: int


@leaf
class EntryTooLarge(ArchiveError):
    """One file is larger than an image can sensibly be."""

    code = "entry-too-large"
    sentence = "{entry!r} unpacks to more than {limit_bytes} bytes; leave it out or shrink it"
    entry: str
    limit_bytes: int


@leaf
class ArchiveTooLarge(ArchiveError):
    """All files together, or the list of them, are over the limit."""

    code = "archive-too-large"
    sentence = "{what} of the archive takes more than {limit_bytes} bytes; split the upload"
    what: str
    limit_bytes: int


class LayoutError(DatasetError):
    """The files of an upload do not say which image has which label."""

    code = "invalid-layout"


@leaf
class AmbiguousLayout(LayoutError):
    """The folders fit none of the layouts that are understood."""

    code = "ambiguous-layout"
    sentence = (
        "{reason}; use <class>/<image>, <split>/<class>/<image> or a metadata.csv with the columns "
        "file_name and label. Found, for example: {sample}"
    )
    reason: str
    sample: list[str]


@leaf
class EmptyDataset(LayoutError):
    """There is no usable image."""

    code = "empty-dataset"
    sentence = "the archive holds {files} files and none is a usable image"
    files: int


@leaf
class NeedTwoClasses(LayoutError):
    """A classifier needs something to tell apart."""

    code = "need-two-classes"
    sentence = "a classifier needs at least two classes; found: {classes}"
    classes: list[str]


@leaf
class TooManyClasses(LayoutError):
    """More classes than are accepted."""

    code = "too-many-classes"
    sentence = "there are {count} classes, the limit is {limit}"
    count: int
    limit: int


@leaf
class ClassCollision(LayoutError):
    """Two class names differ only in case, accents' spelling or trailing dots and spaces."""

    code = "class-collision"
    sentence = "the classes {first!r} and {second!r} look the same; rename or merge them"
    first: str
    second: str


@leaf
class InvalidClassName(LayoutError):
    """A class name is empty, too long or not plain text."""

    code = "invalid-class-name"
    sentence = "the class name {name!r} {reason}; rename it"
    name: str
    reason: str


@leaf
class ReservedClassName(LayoutError):
    """A class name that Windows keeps for a device."""

    code = "reserved-class-name"
    sentence = "the class name {name!r} is reserved on Windows; rename it"
    name: str


@leaf
class ClassWithoutImages(LayoutError):
    """A class was declared, but no image could be used for training it."""

    code = "class-without-images"
    sentence = "no usable training image is left for {classes}; add some or remove the class"
    classes: list[str]


@leaf
class InvalidMetadata(LayoutError):
    """Rows of a metadata file cannot be used; all are told at once."""

    code = "invalid-metadata"
    sentence = "{file} has {total} problems; the report lists them, the first is: {first}"
    file: str
    total: int
    first: str
    problems: list[dict[str, Any]]


@leaf
class LabelKindMismatch(LayoutError):
    """Images with one label and with several cannot be in one dataset."""

    code = "label-kind-mismatch"
    sentence = (
        "the images of the upload have {found} each, those of the version it adds to {known}; "
        "make a new dataset"
    )
    found: str
    known: str


@leaf
class TooManyUnreadable(DatasetError):
    """So many images cannot be decoded that something went wrong before the upload."""

    code = "too-many-unreadable"
    sentence = "{unreadable} of {total} images cannot be used, for example {first}"
    unreadable: int
    total: int
    first: list[str]


@leaf
class TooManyPixels(DatasetError):
    """The resized images together would not fit the pixel cache."""

    code = "too-many-pixels"
    sentence = "the images take more than {limit_bytes} bytes after resizing; split the upload"
    limit_bytes: int
