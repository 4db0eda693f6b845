"""Streams an upload to disk with a running SHA-256, raw or as multipart, bounded in bytes.

Nothing is held in memory and nothing is left behind: whatever goes wrong, the temporary file is
removed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import ParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from models_cache import durable
from service.errors import BodyTooLarge, MultipartMalformed

if TYPE_CHECKING:  # it exists for type checkers only
    from python_multipart.multipart import MultipartCallbacks

FIELD_NAME = b"file"
_MAX_PART_HEADER_BYTES = 16 << 10


@dataclass(frozen=True)
class Upload:
    """A received file, not yet a blob; gone when its block ends."""

    path: Path
    sha256: str
    size_bytes: int
    file_name: str | None


@asynccontextmanager
async def receive(request: Request, folder: Path, max_bytes: int) -> AsyncIterator[Upload]:
    """Yield the uploaded file: the raw body, or multipart field `file`.

    Args:
        request: The request; its body is read once.
        folder: Where the temporary file lies; the same file system as the blobs.
        max_bytes: Largest accepted file.

    Raises:
        BodyTooLarge: The file, or what the client declares, is larger.
        MultipartMalformed: The multipart body cannot be read or lacks the field.
        InsufficientStorage: The disk is full.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes + _MAX_PART_HEADER_BYTES:
        raise BodyTooLarge(max_bytes)
    path = folder / f"{uuid.uuid4().hex}{durable.TEMPORARY_SUFFIX}"
    try:
        try:
            with await run_in_threadpool(_open_new, path) as file:
                sink = _Sink(file, max_bytes)
                file_name = await _feed(request, sink)
        except OSError as error:
            durable.raise_if_full(error, "receiving an upload")
            raise
        yield Upload(path, sink.sha256, sink.size_bytes, file_name)
    finally:
        await run_in_threadpool(path.unlink, missing_ok=True)


def _open_new(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


class _Sink:
    """Writes chunks to a file, counting and hashing them."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._max_bytes = max_bytes
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        self._hash.update(chunk)
        self._file.write(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


async def _feed(request: Request, sink: _Sink) -> str | None:
    """Read the whole body into the sink; return the file name a multipart client gave."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        async for chunk in request.stream():
            await run_in_threadpool(sink.write, chunk)
        return None
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise MultipartMalformed("the boundary is missing or longer than 70 characters")
    parts = _FilePart(sink)
    parser = MultipartParser(boundary, parts.callbacks(), max_size=float("inf"))
    try:
        async for chunk in request.stream():
            await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except ParseError as error:
        raise MultipartMalformed(str(error)[:200]) from None
    if not parts.ended:
        raise MultipartMalformed("it is cut off, or has no file in a field named `file`")
    return parts.file_name


class _FilePart:
    """Passes the data of the one field `file` on; other fields are refused."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._name = bytearray()
        self._value = bytearray()
        self._seen = False
        self._inside = False
        self.ended = False
        self.file_name: str | None = None

    def callbacks(self) -> MultipartCallbacks:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header(self._name, data, start, end),
            "on_header_value": lambda data, start, end: self._header(self._value, data, start, end),
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if self._seen:
            raise MultipartMalformed("there is more than one part; send one field named `file`")
        self._seen = True

    @staticmethod
    def _header(target: bytearray, data: bytes, start: int, end: int) -> None:
        target += data[start:end]
        if len(target) > _MAX_PART_HEADER_BYTES:
            raise MultipartMalformed("a part's header is too long")

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            if options.get(b"name") != FIELD_NAME:
                raise MultipartMalformed("the field must be named `file`")
            name = options.get(b"filename")
            self.file_name = None if name is None else name.decode("utf-8", "replace")
            self._inside = True
        self._name.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if not self._inside:
            raise MultipartMalformed("the part has no Content-Disposition")
        self._sink.write(data[start:end])

    def _end(self) -> None:
        self.ended = self._inside
