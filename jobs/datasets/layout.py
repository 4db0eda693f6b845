"""Which image has which label, from the names of files alone.

Understood: class folders (`ants/1.jpg`), split folders (`train/ants/1.jpg`), either under one
wrapping folder, and metadata files (`metadata.py`). Everything has to fit one of them: a file at
another depth is an error, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.datasets.errors import AmbiguousLayout, printable
from jobs.datasets.manifest import TEST, TRAIN, VAL
from jobs.datasets.metadata import METADATA_NAMES, labels_of

SPLIT_OF_FOLDER = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_OTHER_SUFFIXES = (".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
_REFUSED_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd")
_IMAGE_SUFFIXES = frozenset((*_JPEG_SUFFIXES, *_OTHER_SUFFIXES, *_REFUSED_SUFFIXES))
_JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
_JUNK_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})
_SAMPLE_PATHS = 8


@dataclass(frozen=True)
class Label:
    """What a layout says about one file.

    Args:
        split: `train`, `val`, `test`; empty if the layout does not say.
        spelling: The class name as written.
    """

    split: str
    spelling: str


@dataclass(frozen=True)
class Layout:
    """What the names and metadata of an upload say.

    Args:
        labels: For each labelled image, its label.
        unlabelled: Images that a metadata file does not name.
        several: Whether a label is any number of them, joined by `|`.
    """

    labels: Mapping[str, Label]
    unlabelled: Sequence[str] = field(default=())
    several: bool = False


def is_junk(path: str) -> bool:
    """Tell whether a file is what operating systems and tools leave behind."""
    parts = path.split("/")
    return (
        any(part.startswith(".") or part in _JUNK_FOLDERS for part in parts)
        or parts[-1].casefold() in _JUNK_FILES
    )


def is_image_name(path: str) -> bool:
    """Tell whether a name promises an image; one that then cannot be decoded is an error."""
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return dot + suffix.casefold() in _IMAGE_SUFFIXES


def is_metadata_name(path: str) -> bool:
    """Tell whether a file may say the labels."""
    return path.rpartition("/")[2] in METADATA_NAMES


def find_layout(
    images: Collection[str], metadata: Sequence[str], read: Callable[[str], bytes], max_rows: int
) -> Layout:
    """Find the label of each image.

    Args:
        images: Names of all files that are or promise to be images.
        metadata: Names of all files that may say labels.
        read: Returns the content of one of `metadata`.
        max_rows: How many rows a metadata file may have.

    Raises:
        AmbiguousLayout: The names fit no layout, or more than one.
        LayoutError: A metadata file cannot be used.
    """
    if metadata:
        return _from_metadata(images, metadata, read, max_rows)
    folders = {path: tuple(path.split("/")[:-1]) for path in images}
    found = _from_folders(folders)
    if found is None and len({parts[:1] for parts in folders.values()}) == 1:
        found = _from_folders({path: parts[1:] for path, parts in folders.items()})
    if found is None:
        raise AmbiguousLayout("the images are not at one depth of folders", _sample(images))
    _check_splits(found, images)
    _check_split_folders(found, images)
    return Layout(found)


def _from_folders(folders: Mapping[str, tuple[str, ...]]) -> dict[str, Label] | None:
    """Read labels off the folders if they fit a layout as they are."""
    depths = {len(parts) for parts in folders.values()}
    tops = {parts[0] for parts in folders.values() if parts}
    all_splits = all(top.casefold() in SPLIT_OF_FOLDER for top in tops)
    if depths == {1} and not all_splits:
        return {path: Label("", parts[0]) for path, parts in folders.items()}
    if depths == {2} and all_splits:
        return {
            path: Label(SPLIT_OF_FOLDER[parts[0].casefold()], parts[1])
            for path, parts in folders.items()
        }
    return None


def _check_splits(labels: Mapping[str, Label], images: Collection[str]) -> None:
    splits = {label.split for label in labels.values()}
    if len(splits) > 1 and "" in splits:
        raise AmbiguousLayout("some images are in split folders and some are not", _sample(images))
    if splits and not splits & {"", TRAIN}:
        raise AmbiguousLayout("there is no folder 'train'", _sample(images))


def _check_split_folders(labels: Mapping[str, Label], images: Collection[str]) -> None:
    """Refuse `val` beside `valid`: merging them would be a guess."""
    folders: dict[str, str] = {}
    for path, label in labels.items():
        folder = path.split("/")[-3] if label.split else ""
        if folders.setdefault(label.split, folder) != folder:
            reason = f"both {printable(folder)!r} and {folders[label.split]!r} hold '{label.split}'"
            raise AmbiguousLayout(reason, _sample(images))


def _from_metadata(
    images: Collection[str], metadata: Sequence[str], read: Callable[[str], bytes], max_rows: int
) -> Layout:
    folders = [path.rpartition("/")[0] for path in metadata]
    if len(set(folders)) != len(folders):
        raise AmbiguousLayout("there are two metadata files in one folder", _sample(metadata))
    root = _root_of(images, folders)
    labels: dict[str, Label] = {}
    known = set(images)
    several: set[bool] = set()
    for path, folder in zip(metadata, folders, strict=True):
        found = labels_of(path, read(path), folder, known, max_rows)
        several.add(found.several)
        for image, spelling in found.labels.items():
            labels[image] = Label(_split_below(root, image), spelling)
    if len(several) > 1:
        reason = "one metadata file has a column 'label' and another one 'labels'"
        raise AmbiguousLayout(reason, _sample(metadata))
    if not labels:
        raise AmbiguousLayout("the metadata names no image", _sample(metadata))
    _check_splits(labels, images)
    return Layout(labels, sorted(known - labels.keys()), True in several)


def _root_of(images: Collection[str], folders: Sequence[str]) -> str:
    """Return the folder that the layout starts in: the one of the metadata, or above splits."""
    tops = {folder.rpartition("/")[2].casefold() for folder in folders}
    parents = {folder.rpartition("/")[0] for folder in folders}
    if tops <= SPLIT_OF_FOLDER.keys() and len(parents) == 1:
        return parents.pop()
    if len(folders) == 1 and folders[0].count("/") == 0:
        return folders[0]
    raise AmbiguousLayout(
        "the metadata files are neither at the top nor in splits", _sample(images)
    )


def _split_below(root: str, path: str) -> str:
    below = path.removeprefix(f"{root}/") if root else path
    top, slash, _ = below.partition("/")
    return SPLIT_OF_FOLDER.get(top.casefold(), "") if slash else ""


def _sample(paths: Collection[str]) -> list[str]:
    """Return one path for each kind of place, so that a reader sees the difference."""
    places: dict[tuple[int, str], str] = {}
    for path in sorted(paths):
        places.setdefault((path.count("/"), path.partition("/")[0]), path)
    return [printable(path) for path in places.values()][:_SAMPLE_PATHS]
