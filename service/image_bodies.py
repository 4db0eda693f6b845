"""Encoded images out of a request: one raw body, multipart `files`, or JSON `inputs`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.body_length import declared_bytes
from service.errors import (
    BodyTooLarge,
    MediaTypeUnsupported,
    MultipartMalformed,
    ValidationFailed,
)
from service.json_body import parse_json, read_body, validate
from service.schemas import PredictRequest

MAX_IMAGES = 32
MAX_BODY_BYTES = 64 << 20
#: Besides `image/*`: none at all, and what curl and others say when nobody told them.
_RAW_KINDS = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
IMAGES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "application/json": {"schema": PredictRequest.model_json_schema()},
        },
    }
}


async def read_images(request: Request) -> tuple[list[bytes], bool]:
    """Return the encoded images of a request, and whether it was one raw image.

    Raises:
        MediaTypeUnsupported: Its content type is none of the three forms.
        BodyTooLarge: It has more than 64 MiB of images.
        MultipartMalformed, JsonMalformed, ValidationFailed: It is not such a body, or has none.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        body = await read_body(request, MAX_BODY_BYTES * 4 // 3 + (1 << 16))
        return await run_in_threadpool(_from_json, body), False
    if kind == "multipart/form-data":
        return await _from_multipart(request), False
    if kind.startswith("image/") or kind in _RAW_KINDS:
        image = await read_body(request, MAX_BODY_BYTES)
        if not image:
            raise ValidationFailed.one("", "empty-body", "send the bytes of an image")
        return [image], True
    raise MediaTypeUnsupported(kind, "image/*, multipart/form-data or application/json")


def decode_base64(text: str, pointer: str) -> bytes:
    """Return the bytes of base64 text, or raise `ValidationFailed` at `pointer`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValidationFailed.one(pointer, "invalid-base64", "not base64") from None


def _from_json(body: bytes) -> list[bytes]:
    request = validate(PredictRequest, parse_json(body))
    return [
        decode_base64(item.b64, f"/inputs/{index}/b64") for index, item in enumerate(request.inputs)
    ]


async def _from_multipart(request: Request) -> list[bytes]:
    if declared_bytes(request) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    parser = MultiPartParser(request.headers, _bounded(request), max_files=MAX_IMAGES, max_fields=0)
    # An image below this stays in memory instead of a temporary file.
    parser.spool_max_size = MAX_BODY_BYTES
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        message = getattr(error, "message", "the boundary is missing")
        raise MultipartMalformed(str(message)[:200]) from None
    files = [value for key, value in form.multi_items() if key == "files"]
    if not files or len(files) != len(form.multi_items()):
        raise MultipartMalformed("send images in fields named `files`, and nothing else")
    return [await file.read() for file in files if isinstance(file, UploadFile)]


async def _bounded(request: Request) -> AsyncGenerator[bytes]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        yield chunk
