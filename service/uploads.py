"""Streams an upload to disk with a running SHA-256, raw or as multipart, bounded in bytes.

Nothing is held in memory and nothing is left behind: whatever goes wrong, the temporary file is
removed.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import ParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from models_cache import durable, faults
from service.body_length import declared_bytes
from service.errors import BodyTooLarge, MultipartMalformed

if TYPE_CHECKING:  # it exists for type checkers only
    from python_multipart.multipart import MultipartCallbacks

#: What was received and not used is removed so long after its last byte.
LEFTOVER_SECONDS = 3600.0
_MAX_PART_HEADER_BYTES = 16 << 10
_MAX_TEXT_BYTES = 1 << 10


@dataclass(frozen=True)
class Form:
    """Which fields a multipart body has.

    Args:
        file: The one field that holds the file.
        texts: Fields of short text that may stand beside it.
    """

    file: str = "file"
    texts: frozenset[str] = frozenset()


FILE_FORM = Form()


@dataclass(frozen=True)
class Upload:
    """A received file, not yet a blob; gone when its block ends.

    `texts` are the further fields of a multipart body.
    """

    path: Path
    sha256: str
    size_bytes: int
    file_name: str | None
    texts: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def receive(
    request: Request, folder: Path, max_bytes: int, form: Form = FILE_FORM
) -> AsyncIterator[Upload]:
    """Yield the uploaded file: the raw body, or a field of a multipart one.

    Args:
        request: The request; its body is read once.
        folder: Where the temporary file lies; the same file system as the blobs.
        max_bytes: Largest accepted file.
        form: The fields of a multipart body.

    Raises:
        BodyTooLarge: The file, or what the client declares, is larger.
        MultipartMalformed: The multipart body cannot be read or has other fields.
        InsufficientStorage: The disk is full.
    """
    if declared_bytes(request) > max_bytes + _MAX_PART_HEADER_BYTES:
        raise BodyTooLarge(max_bytes)
    path = folder / f"{uuid.uuid4().hex}{durable.TEMPORARY_SUFFIX}"
    try:
        try:
            with await run_in_threadpool(_open_new, path) as file:
                sink = _Sink(file, max_bytes)
                parts = await _feed(request, sink, form)
        except OSError as error:
            durable.raise_if_full(error, "receiving an upload")
            raise
        yield Upload(path, sink.sha256, sink.size_bytes, parts.file_name, parts.texts())
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
        faults.reach("upload.chunk")
        self._file.write(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


async def _feed(request: Request, sink: _Sink, form: Form) -> _Parts:
    """Read the whole body into the sink; return what a multipart one said besides."""
    parts = _Parts(sink, form)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        async for chunk in request.stream():
            await run_in_threadpool(sink.write, chunk)
        return parts
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise MultipartMalformed("the boundary is missing or longer than 70 characters")
    parser = MultipartParser(boundary, parts.callbacks(), max_size=float("inf"))
    try:
        async for chunk in request.stream():
            await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except ParseError as error:
        raise MultipartMalformed(str(error)[:200]) from None
    if not parts.complete:
        raise MultipartMalformed(f"it is cut off, or has no file in a field named `{form.file}`")
    return parts


class _Parts:
    """Passes the data of the file's field on, keeps short texts, refuses every other field."""

    def __init__(self, sink: _Sink, form: Form) -> None:
        self._sink = sink
        self._form = form
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._field: str | None = None  # that data belongs to
        self._texts: dict[str, bytearray] = {}
        self._has_file = False
        self.complete = False
        self.file_name: str | None = None

    def callbacks(self) -> MultipartCallbacks:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": partial(_extend, self._header_name),
            "on_header_value": partial(_extend, self._header_value),
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def texts(self) -> dict[str, str]:
        """Return the fields of text."""
        return {name: value.decode("utf-8", "replace") for name, value in self._texts.items()}

    def _begin(self) -> None:
        self._field = None

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self._start(options.get(b"name", b"").decode("utf-8", "replace"))
            if self._field == self._form.file:
                name = options.get(b"filename")
                self.file_name = None if name is None else name.decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def _start(self, name: str) -> None:
        if name != self._form.file and name not in self._form.texts:
            fields = " and ".join(f"`{known}`" for known in [self._form.file, *self._form.texts])
            raise MultipartMalformed(f"the field {name[:80]!r} is unknown; send {fields}")
        if name in self._texts or (name == self._form.file and self._has_file):
            raise MultipartMalformed(f"there is more than one field `{name}`")
        if name in self._form.texts:
            self._texts[name] = bytearray()
        else:
            self._has_file = True
        self._field = name

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            raise MultipartMalformed("a part has no Content-Disposition")
        if self._field == self._form.file:
            self._sink.write(data[start:end])
            return
        text = self._texts[self._field]
        text += data[start:end]
        if len(text) > _MAX_TEXT_BYTES:
            raise MultipartMalformed(f"the field `{self._field}` is too long")

    def _end(self) -> None:
        self.complete = self._has_file


def _extend(header: bytearray, data: bytes, start: int, end: int) -> None:
    header += data[start:end]
    if len(header) > _MAX_PART_HEADER_BYTES:
        raise MultipartMalformed("a part's header is too long")
