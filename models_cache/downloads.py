"""One weights file over HTTP, resumable.

Bytes go to a partial file with a small record beside it: where they come from, how long the whole
is, and the validator (strong ETag or Last-Modified) under which they may be continued. A changed
validator, a server without ranges or a length that does not fit start the file again. What the
bytes *are* is not decided here but by their hash (`models_cache.weights`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from models_cache import durable, faults
from models_cache.egress import Answer, Outgoing, exchange
from models_cache.egress_errors import EgressFailed, ForbiddenUrl
from models_cache.weights_sources import (
    Download,
    NotOffered,
    Report,
    SourceFailed,
    require_space,
)

_CHUNK_BYTES = 1 << 16
_MAX_RESUMES = 5  # of one call; each must have brought bytes
_TOTAL_SECONDS = 6 * 3600.0  # of one connection
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PICKLE_PROTOCOLS = {2, 3, 4, 5}


class _Interrupted(Exception):
    """The connection ended early; what arrived is kept."""


class _StartAgain(Exception):
    """What was kept cannot be continued."""


@dataclass(frozen=True)
class _Kept:
    """The beginning of a file from an earlier attempt."""

    validator: str
    total_bytes: int | None
    bytes: int


def fetch(download: Download, report: Report) -> bool:
    """Fetch the file into `download.partial`, going on where an earlier attempt ended.

    Args:
        download: What and how.
        report: Told about progress; what it raises ends the download, which can be resumed.

    Returns:
        Whether any part of the file is from an earlier attempt.

    Raises:
        SourceFailed: The address cannot deliver; what arrived so far is kept if it may be resumed.
        InsufficientStorage: The disk is full; nothing is kept, so that others can go on.
    """
    download.partial.parent.mkdir(parents=True, exist_ok=True)
    resumed, interruptions, restarted = _kept(download) is not None, 0, False
    while True:
        before = _size(download.partial)
        try:
            _attempt(download, report)
        except _StartAgain as error:
            download.discard()
            if restarted:
                raise SourceFailed(str(error)) from error
            restarted = True
        except _Interrupted as error:
            interruptions += 1
            if interruptions > _MAX_RESUMES or _size(download.partial) <= before:
                raise SourceFailed(str(error)) from error
            resumed = True
        except OSError as error:
            download.discard()
            durable.raise_if_full(error, f"downloading {download.partial.name}")
            raise
        else:
            return resumed


def _attempt(download: Download, report: Report) -> None:
    kept = _kept(download)
    if kept is None:
        download.discard()
    elif kept.bytes == kept.total_bytes:
        return
    headers = {}
    if kept is not None:
        headers = {"Range": f"bytes={kept.bytes}-", "If-Range": kept.validator}
    if download.authorization is not None:
        headers["Authorization"] = download.authorization
    with _opened(download, headers) as response:
        offset, total = _place(response, kept)
        _refuse_what_is_no_file(response)
        if total is not None and total > download.max_bytes:
            raise SourceFailed(f"the file has {total} bytes, at most {download.max_bytes} expected")
        _require_space(download, total, offset)
        if offset == 0:
            _write_record(download, response, total)
        with download.partial.open("ab" if offset else "wb") as file:
            _receive(response, file, download, (offset, total), report)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _opened(download: Download, headers: dict[str, str]) -> Iterator[Answer]:
    """Yield the answer after allowed redirects, the body unread."""
    outgoing = Outgoing(
        url=download.url,
        headers=headers,
        connect_seconds=download.connect_timeout_seconds,
        total_seconds=_TOTAL_SECONDS,
        may_follow=download.may_visit,
    )
    try:
        with exchange(download.egress, outgoing) as answer:
            yield answer
    except EgressFailed as error:
        raise SourceFailed(error.reason) from error
    except ForbiddenUrl as error:
        raise SourceFailed(str(error)) from error


def _place(response: Answer, kept: _Kept | None) -> tuple[int, int | None]:
    """Return at which byte the answer's body begins and how long the whole file is."""
    if response.status == HTTPStatus.OK:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    if response.status == HTTPStatus.PARTIAL_CONTENT and kept is not None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        start, total = (int(match[1]), int(match[3])) if match else (-1, -1)
        if start != kept.bytes or total != (kept.total_bytes or total):
            raise _StartAgain("it sent another range than the one asked for")
        if "etag" in response.headers and (_validator(response) or kept.validator) != (
            kept.validator
        ):
            raise _StartAgain("its ETag changed within one file")
        return start, total
    if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and kept is not None:
        raise _StartAgain("it refuses the range that is missing")
    if response.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise NotOffered(f"HTTP {response.status}")
    raise SourceFailed(f"HTTP {response.status}")


def _refuse_what_is_no_file(response: Answer) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise SourceFailed("it sent a web page instead of the file (a login or proxy page?)")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise SourceFailed("it sent compressed bytes although none were asked for")


def _receive(
    response: Answer,
    file: BinaryIO,
    download: Download,
    place: tuple[int, int | None],
    report: Report,
) -> None:
    done, total = place
    report(done, total)
    try:
        for chunk in response.chunks(_CHUNK_BYTES):
            if done == 0 and not looks_like_weights(download.url, chunk):
                raise SourceFailed("it sent something that is no weights file")
            done += len(chunk)
            if done > min(download.max_bytes, total or download.max_bytes):
                raise SourceFailed(f"it sent more than the {total or download.max_bytes} bytes")
            file.write(chunk)
            faults.reach("weights.chunk")
            report(done, total)
    except EgressFailed as error:
        file.flush()
        raise _Interrupted(
            f"the connection ended after {done} of {total or 'unknown'} bytes: {error.reason}"
        ) from error
    if total is not None and done < total:
        raise _Interrupted(f"only {done} of {total} bytes arrived")


def looks_like_weights(name: str, beginning: bytes) -> bool:
    """Tell by its first bytes whether a file may be a zip, a pickle or a safetensors file."""
    if urlsplit(name).path.endswith(".safetensors"):
        return beginning[8:9] == b"{"
    pickled = beginning[:1] == b"\x80" and beginning[1:2] and beginning[1] in _PICKLE_PROTOCOLS
    return bool(pickled) or beginning[:4] == b"PK\x03\x04"


def _require_space(download: Download, total: int | None, offset: int) -> None:
    if total is not None:
        doing = f"downloading {download.partial.name}"
        require_space(download.partial.parent, total - offset, doing)


def _validator(response: Answer) -> str | None:
    etag = response.headers.get("etag", "")
    if etag.startswith('"'):  # weak ones may not be used with If-Range
        return etag
    return response.headers.get("last-modified")


def _write_record(download: Download, response: Answer, total: int | None) -> None:
    download.partial.unlink(missing_ok=True)
    record = {"url": download.url, "validator": _validator(response), "total_bytes": total}
    durable.write_bytes(download.record, json.dumps(record).encode(), point="weights.record")


def _kept(download: Download) -> _Kept | None:
    """Return what an earlier attempt left, if it may be continued."""
    try:
        record = json.loads(download.record.read_bytes())
        size_bytes, total = download.partial.stat().st_size, record["total_bytes"]
        validator, url = record["validator"], record["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if url != download.url or not isinstance(validator, str) or size_bytes == 0:
        return None
    if total is not None and size_bytes > total:
        return None
    return _Kept(validator, total, size_bytes)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
