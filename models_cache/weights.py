"""The vault: the folder of pretrained weights, which holds verified files only.

A file gets in from the first of these that can deliver it: the folder of the catalogue file that
names it, the configured sources in order (folders, base URLs), the official address. It is
checked by its full SHA-256 before it gets its name, and again before each load.

Where a full hash comes from: a catalogue file, or it is learned. Learned means: a download over
HTTPS from the official host (redirects only there) whose hash begins with the digits in the
official file name. It is recorded and enforced from then on. Files from folders and mirrors never
teach a hash.

    weights/<file>            verified bytes        weights/.partial/   downloads not finished
    weights/learned.json      learned hashes        weights/.locks/     one lock per file
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote, urlsplit

from models_cache import durable, faults
from models_cache.catalogue import WeightsInfo
from models_cache.catalogue_files import FILE_NAME
from models_cache.egress_errors import ForbiddenUrl
from models_cache.egress_policy import PUBLIC_ONLY, EgressPolicy
from models_cache.weights_errors import (
    WeightsError,
    WeightsHashMismatch,
    WeightsUnavailable,
    WeightsUnverifiable,
)
from models_cache.weights_hashes import LearnedHashes, locked
from models_cache.weights_sources import (
    Download,
    NotOffered,
    Report,
    SourceFailed,
    require_space,
    split_credentials,
    without_credentials,
)

OFFICIAL_URL_PREFIX = "https://download.pytorch.org/"

_COPY_BYTES = 1 << 20
_MAX_FILE_BYTES = 8 << 30  # where the catalogue says no size
_SIZE_SLACK_BYTES = 1 << 20  # the catalogue's sizes of official files are rounded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """One place to try: how it is called in errors and how it delivers."""

    label: str
    deliver: Callable[[], Path]


class WeightsVault:
    """The folder of verified weights and the places they come from.

    Safe to use from several processes and threads on one host: each file is fetched once.

    Args:
        root: The folder `weights/`; made when the first file comes.
        sources: Folders or http(s) base URLs, tried by file name before the official address.
        offline: Never open a connection; catalogue and source folders are still used.
        official_url_prefix: Only addresses that start so, redirects included, are official.
        egress: Where connections may lead; the hosts of `sources` are allowed beside it.
        connect_timeout_seconds: Until a connection must stand.
    """

    def __init__(
        self,
        root: Path,
        sources: Sequence[str] = (),
        *,
        offline: bool = False,
        official_url_prefix: str = OFFICIAL_URL_PREFIX,
        egress: EgressPolicy = PUBLIC_ONLY,
        connect_timeout_seconds: float = 5.0,
    ) -> None:
        self._root = root
        self._sources = tuple(sources)
        self._offline = offline
        self._official = official_url_prefix
        self._egress = egress
        self._connect_timeout_seconds = connect_timeout_seconds
        self._learned = LearnedHashes(root / "learned.json", root / ".locks")
        self._hashes: dict[str, tuple[tuple[int, ...], str]] = {}

    def sha256_of(self, info: WeightsInfo) -> str | None:
        """Return the full hash that the file must have: the catalogue's or the learned one."""
        return info.sha256 or self._learned.get(info.file)

    def verified(self, info: WeightsInfo) -> Literal["full", "prefix"] | None:
        """Tell what the file is or will be checked against: all of its hash, or its beginning.

        `prefix` becomes `full` with the first official download; None can never be trusted.
        """
        if self.sha256_of(info) is not None:
            return "full"
        return "prefix" if info.sha256_prefix else None

    def have(self, info: WeightsInfo) -> bool:
        """Tell whether a verified copy is here: for lists, not before a load.

        A file is read once per process and then trusted while its inode, size and times stay.
        """
        path, expected = self._path(info.file), self.sha256_of(info)
        return expected is not None and path.is_file() and self._hash_once(path) == expected

    def holds_file(self, info: WeightsInfo) -> bool:
        """Tell whether a file of that name is here, whatever its bytes are."""
        return self._path(info.file).is_file()

    def path_if_verified(self, info: WeightsInfo) -> Path | None:
        """Return the file if all its bytes, read now, have the expected hash; else None."""
        expected = self.sha256_of(info)
        return self.path_if_sha256(info.file, expected) if expected else None

    def path_if_sha256(self, file: str, sha256: str) -> Path | None:
        """Return the file of that name if its bytes, read now, have that hash; else None.

        For artifacts, which know their weights by file name and hash.
        """
        path = self._path(file)
        if not path.is_file():
            return None
        if (actual := durable.sha256_of_file(path)) == sha256:
            return path
        _log.warning("%s in the vault has sha256 %s instead of %s", file, actual, sha256)
        return None

    def ensure(self, info: WeightsInfo, report: Report = lambda _done, _total: None) -> Path:
        """Return the verified file; fetch it if it is not here or was damaged.

        Concurrent callers wait for one download. What `report` raises ends the call; a download
        can be resumed by the next one.

        Args:
            info: Of the catalogue.
            report: Told bytes done and bytes in all (None if unknown).

        Raises:
            WeightsUnavailable: No source delivered it; the sentence names each and why.
            WeightsHashMismatch: Those that had it had other bytes.
            WeightsUnverifiable: Those that had it could not be checked.
            InsufficientStorage: The disk is full.
        """
        if (path := self.path_if_verified(info)) is not None:
            return path
        with locked(self._root / ".locks", info.file, lambda: report(0, None)):
            if (path := self.path_if_verified(info)) is not None:
                return path  # another caller was first
            failures: list[tuple[str, Exception]] = []
            for source in self._sources_of(info, report):
                try:
                    return source.deliver()
                except (SourceFailed, WeightsError) as error:
                    failures.append((source.label, error))
            raise _verdict(info.file, failures)

    def adopt(self, info: WeightsInfo, bytes_: BinaryIO, sha256: str, report: Report) -> Path:
        """Take a file whose full hash someone vouches for, as an import by the operator does.

        Args:
            info: Of the catalogue.
            bytes_: Read to its end.
            sha256: The hash it must have; recorded for official files.
            report: As in `ensure`.

        Raises:
            WeightsHashMismatch: The bytes, the known hash or the official name say otherwise.
        """
        expected = self.sha256_of(info) or sha256
        if sha256 != expected or not sha256.startswith(info.sha256_prefix or ""):
            known = info.sha256_prefix if sha256 == expected else expected
            raise WeightsHashMismatch(info.file, "the bundle", str(known), sha256)
        with locked(self._root / ".locks", info.file):
            path = self._copy(info, bytes_, sha256, "the bundle", report)
            if info.sha256 is None:
                self._learned.learn(info.file, sha256, "import")
        return path

    def _sources_of(self, info: WeightsInfo, report: Report) -> Iterator[_Source]:
        if info.catalogue_folder is not None:
            folder = info.catalogue_folder
            yield _Source(str(folder), partial(self._from_folder, info, folder, report))
        for text in self._sources:
            if text.startswith(("http://", "https://")):
                yield self._mirror(info, text, report)
            else:
                folder = Path(text)
                yield _Source(text, partial(self._from_folder, info, folder, report))
        if info.url is not None:
            yield _Source(info.url, partial(self._from_official, info, info.url, report))

    def _mirror(self, info: WeightsInfo, base_url: str, report: Report) -> _Source:
        address = f"{base_url.rstrip('/')}/{quote(info.file)}"
        url, authorization = split_credentials(address)
        origin = urlsplit(url)[:2]
        label = without_credentials(url)

        def deliver() -> Path:
            expected = self.sha256_of(info)
            if expected is None:  # not even asked for: nothing it says could be believed
                raise WeightsUnverifiable(info.file, label)
            try:
                egress = self._egress.allowing(url)
            except ForbiddenUrl as error:
                raise SourceFailed(str(error)) from error
            download = replace(
                self._download(info, url, lambda target: urlsplit(target)[:2] == origin),
                egress=egress,
                authorization=authorization,
            )
            return self._from_address(info, download, (label, expected), report)

        return _Source(label, deliver)

    def _from_folder(self, info: WeightsInfo, folder: Path, report: Report) -> Path:
        path, expected = folder / info.file, self.sha256_of(info)
        if not path.is_file():
            raise NotOffered("it is not there")
        if expected is None:
            raise WeightsUnverifiable(info.file, str(folder))
        try:
            with path.open("rb") as file:
                self._root.mkdir(parents=True, exist_ok=True)
                require_space(self._root, path.stat().st_size, f"copying {info.file}")
                return self._copy(info, file, expected, str(folder), report)
        except OSError as error:
            raise SourceFailed(f"{type(error).__name__}: {error.strerror}") from error

    def _from_official(self, info: WeightsInfo, url: str, report: Report) -> Path:
        known = self.sha256_of(info)
        expected = known or info.sha256_prefix
        if not url.startswith(self._official):
            raise SourceFailed(f"it is not on {self._official}")
        if expected is None:
            raise WeightsUnverifiable(info.file, url)
        download = self._download(info, url, lambda target: target.startswith(self._official))
        return self._from_address(info, download, (url, expected), report)

    def _download(self, info: WeightsInfo, url: str, may_visit: Callable[[str], bool]) -> Download:
        return Download(
            url=url,
            partial=self._partial(info.file, hashlib.sha256(url.encode()).hexdigest()[:12]),
            max_bytes=_limit_bytes(info),
            may_visit=may_visit,
            egress=self._egress,
            connect_timeout_seconds=self._connect_timeout_seconds,
        )

    def _from_address(
        self, info: WeightsInfo, download: Download, checked: tuple[str, str], report: Report
    ) -> Path:
        """Download, check against a hash or its beginning, and store."""
        label, expected = checked
        if self._offline:
            raise NotOffered("no connection is opened in offline mode")
        from models_cache.downloads import fetch  # noqa: PLC0415 - the HTTP client is not everywhere

        resumed = fetch(download, report)
        actual = durable.sha256_of_file(download.partial)
        if resumed and not actual.startswith(expected):
            download.discard()  # the older part may be what is damaged: once more, all of it
            fetch(download, report)
            actual = durable.sha256_of_file(download.partial)
        if not actual.startswith(expected):
            download.discard()
            raise WeightsHashMismatch(info.file, label, expected, actual)
        if len(expected) < len(actual):
            self._learned.learn(info.file, actual, download.url)
        return self._publish(download.partial, info.file)

    def _copy(
        self, info: WeightsInfo, source: BinaryIO, expected: str, label: str, report: Report
    ) -> Path:
        copy, digest, done = self._partial(info.file, "copy"), hashlib.sha256(), 0
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with copy.open("wb") as out:
                while chunk := source.read(_COPY_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
                    done += len(chunk)
                    faults.reach("weights.chunk")
                    report(done, info.size_bytes)
            if (actual := digest.hexdigest()) != expected:
                raise WeightsHashMismatch(info.file, label, expected, actual)
            return self._publish(copy, info.file)
        except OSError as error:
            durable.raise_if_full(error, f"copying {info.file}")
            raise
        finally:
            copy.unlink(missing_ok=True)

    def _publish(self, checked: Path, file: str) -> Path:
        """Give verified bytes their name, durably, and forget every other attempt at them."""
        path = self._path(file)
        checked.chmod(0o600)
        with checked.open("rb") as bytes_:
            os.fsync(bytes_.fileno())
        faults.reach("weights.before_rename")
        checked.replace(path)
        durable.fsync_folder(path.parent)
        faults.reach("weights.after_rename")
        for rest in checked.parent.glob(f"{file}.*"):
            rest.unlink(missing_ok=True)
        return path

    def _path(self, file: str) -> Path:
        assert FILE_NAME.fullmatch(file), file  # catalogues are checked; it becomes a path here
        return self._root / file

    def _partial(self, file: str, source: str) -> Path:
        return self._root / ".partial" / f"{file}.{source}"

    def _hash_once(self, path: Path) -> str:
        stat = path.stat()
        seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._hashes.get(path.name)
        if known is None or known[0] != seen:
            known = self._hashes[path.name] = (seen, durable.sha256_of_file(path))
        return known[1]


def obtain(
    vault: WeightsVault,
    candidates: Sequence[WeightsInfo],
    report: Report,
    warn: Callable[[str], None],
) -> tuple[WeightsInfo, Path]:
    """Return the first of `Catalogue.candidates` that can be had, and its verified file.

    Args:
        vault: Where to look and to store.
        candidates: In order of preference.
        report: As in `WeightsVault.ensure`.
        warn: Told, in a sentence, of each candidate passed over.

    Raises:
        WeightsError: None can be had; the error of the last one (the others were told to `warn`).
        InsufficientStorage: The disk is full.
    """
    for info, following in zip(candidates, [*candidates[1:], None], strict=True):
        try:
            return info, vault.ensure(info, report)
        except WeightsError as error:
            if following is None:
                raise
            warn(f"weights {info.name} are not used, {following.name} are: {error}")
    raise AssertionError("no candidates")  # Catalogue.candidates never returns none


def _limit_bytes(info: WeightsInfo) -> int:
    if info.size_bytes is None:
        return _MAX_FILE_BYTES
    return info.size_bytes + _SIZE_SLACK_BYTES


def _verdict(file: str, failures: Sequence[tuple[str, Exception]]) -> WeightsError:
    """Return the error of a file that no source delivered."""
    told = [error for _, error in failures if not isinstance(error, NotOffered)]
    for kind in (WeightsHashMismatch, WeightsUnverifiable):
        if told and all(isinstance(error, kind) for error in told):
            first = told[0]
            assert isinstance(first, WeightsError)
            return first
    tried = "; ".join(f"{label}: {_reason(error)}" for label, error in failures)
    return WeightsUnavailable(file, tried or "nothing, no source is configured")


def _reason(error: Exception) -> str:
    if isinstance(error, WeightsHashMismatch):
        return f"its sha256 is {error.actual}, expected {error.expected}"
    if isinstance(error, WeightsUnverifiable):
        return "its full sha256 is not known, so it cannot be checked"
    return str(error)
