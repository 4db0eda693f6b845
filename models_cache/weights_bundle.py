"""What an operator does with the vault: list it, check it, carry it to another machine.

A bundle is a zip of weights files and an index with their full hashes. Importing one means
vouching for it, as naming a catalogue file does; what the catalogue, a learned hash or an official
file name says against it is still enforced, and only files that the catalogue knows are taken.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from models_cache import durable
from models_cache.catalogue import Catalogue, WeightsInfo
from models_cache.catalogue_files import FILE_NAME, SHA256, parse_strictly
from models_cache.weights import WeightsVault
from models_cache.weights_errors import BundleInvalid, WeightsUnavailable
from models_cache.weights_sources import Report

_INDEX = "index.json"
_FORMAT = 1
_MAX_INDEX_BYTES = 4 << 20


@dataclass(frozen=True)
class WeightsStatus:
    """One line of `graft weights list`.

    Args:
        info: Of the catalogue.
        downloaded: Whether a verified copy is in the vault.
        verified: What it is checked against, see `WeightsVault.verified`.
        sha256: The full hash, once known.
    """

    info: WeightsInfo
    downloaded: bool
    verified: Literal["full", "prefix"] | None
    sha256: str | None


def list_weights(vault: WeightsVault, catalogue: Catalogue) -> list[WeightsStatus]:
    """Return the state of every weights file of the catalogue, by architecture."""
    return [
        WeightsStatus(info, vault.have(info), vault.verified(info), vault.sha256_of(info))
        for backbone in catalogue.architectures()
        for info in backbone.weights
    ]


def verify_weights(vault: WeightsVault, catalogue: Catalogue) -> list[tuple[WeightsInfo, bool]]:
    """Read every file that the vault holds, and tell whether its bytes are the expected ones."""
    return [
        (info, vault.path_if_verified(info) is not None)
        for backbone in catalogue.architectures()
        for info in backbone.weights
        if vault.holds_file(info)
    ]


def export_bundle(vault: WeightsVault, weights: Sequence[WeightsInfo], path: Path) -> None:
    """Write verified files and their index to a zip.

    Args:
        vault: Holds the files.
        weights: What to carry; each must be in the vault.
        path: The zip; written whole or not at all.

    Raises:
        WeightsUnavailable: A file is not in the vault, or damaged.
        InsufficientStorage: The disk is full.
    """
    files: dict[str, tuple[WeightsInfo, Path]] = {}
    for info in weights:
        verified = vault.path_if_verified(info)
        if verified is None:
            raise WeightsUnavailable(info.file, "the vault, which has no verified copy")
        files[info.file] = (info, verified)
    index = {"format": _FORMAT, "weights": [_item(vault, *pair) for pair in files.values()]}
    with (
        durable.writing(path, point="weights.bundle") as out,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as bundle,
    ):
        bundle.writestr(_INDEX, json.dumps(index, indent=1))
        for file, (_, verified) in files.items():
            bundle.write(verified, file)


def _item(vault: WeightsVault, info: WeightsInfo, path: Path) -> dict[str, Any]:
    return {
        "architecture": info.architecture,
        "name": info.name,
        "file": info.file,
        "sha256": vault.sha256_of(info),
        "size_bytes": path.stat().st_size,
        "license": info.license,
        "source": info.source,
    }


def import_bundle(
    vault: WeightsVault, catalogue: Catalogue, path: Path, report: Report = lambda _d, _t: None
) -> list[WeightsInfo]:
    """Take the files of a bundle into the vault, each checked by its full hash.

    Files before a bad one stay: each is good by itself.

    Args:
        vault: Takes the files.
        catalogue: Must know each of them.
        path: The zip.
        report: Told bytes done of the file at hand.

    Returns:
        What was taken.

    Raises:
        BundleInvalid: It is no bundle, or names something that the catalogue does not know.
        WeightsHashMismatch: A file is not what the index, the catalogue or its name promises.
        InsufficientStorage: The disk is full.
    """
    taken = []
    try:
        with zipfile.ZipFile(path) as bundle:
            for item in _index(path, bundle):
                info = _known(path, catalogue, item)
                with bundle.open(item["file"]) as file:
                    bounded = cast(BinaryIO, _Bounded(file, item["size_bytes"]))
                    vault.adopt(info, bounded, item["sha256"], report)
                taken.append(info)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleInvalid(str(path), f"{type(error).__name__}: {error}"[:200]) from error
    except FileNotFoundError as error:
        raise BundleInvalid(str(path), "there is no such file") from error
    except (zlib.error, IsADirectoryError) as error:
        raise BundleInvalid(str(path), f"it is damaged: {error}"[:200]) from error
    return taken


class _Bounded:
    """At most so many bytes of a file inside a zip, however much it inflates to."""

    def __init__(self, file: Any, size_bytes: int) -> None:  # noqa: ANN401 - zipfile's own
        self._file = file
        self._left = size_bytes + 1  # one more, so that a longer file has another hash

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _index(path: Path, bundle: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    if bundle.getinfo(_INDEX).file_size > _MAX_INDEX_BYTES:
        raise BundleInvalid(str(path), f"{_INDEX} is too large")
    try:
        index = parse_strictly(bundle.read(_INDEX))
        if index["format"] != _FORMAT:
            raise BundleInvalid(str(path), f"format {index['format']!r} is not known")
        items = list(index["weights"])
        for item in items:
            good = FILE_NAME.fullmatch(item["file"]) and SHA256.fullmatch(item["sha256"])
            if not good or not isinstance(item["size_bytes"], int) or item["size_bytes"] < 0:
                raise BundleInvalid(str(path), f"{_INDEX} names a file wrongly: {item!r}"[:300])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleInvalid(str(path), f"{_INDEX} is malformed: {error}"[:200]) from error
    yield from items


def _known(path: Path, catalogue: Catalogue, item: dict[str, Any]) -> WeightsInfo:
    for backbone in catalogue.architectures():
        for info in backbone.weights:
            if info.file == item["file"]:
                return info
    reason = f"{item['file']} is in no catalogue here; add its catalogue file first"
    raise BundleInvalid(str(path), reason)
