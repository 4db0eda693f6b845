"""Strict reading of JSON bodies and writing of JSON answers.

A default FastAPI application answers 500 to `NaN`, `1e999`, lone surrogates and integers beyond
64 bits, and takes the last of duplicate keys. Here such bodies are refused with what and where.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from jobs.keys import holds_key
from service.body_length import declared_bytes
from service.errors import BodyTooLarge, JsonMalformed, MediaTypeUnsupported, ValidationFailed

MAX_JSON_BYTES = 1 << 20
_MAX_DEPTH = 32
_Model = TypeVar("_Model", bound=BaseModel)
_MAX_INTEGER = 2**63 - 1


async def read_json(request: Request, max_bytes: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401
    """Return the parsed body of a request.

    Raises:
        MediaTypeUnsupported: The content type is not JSON.
        BodyTooLarge: The body is larger than `max_bytes`.
        JsonMalformed: It is not strict JSON in UTF-8.
    """
    _require_json(request)
    return parse_json(await read_body(request, max_bytes))


async def read_model(request: Request, model: type[_Model], *, default: bool = False) -> _Model:
    """Return the body as a pydantic model.

    Args:
        request: The request.
        model: What the body should be; unknown fields are refused by its configuration.
        default: An empty body means every default.
    """
    if not default:
        return validate(model, await read_json(request))
    body = await read_body(request, MAX_JSON_BYTES)
    if not body:
        return model()
    _require_json(request)
    return validate(model, parse_json(body))


def _require_json(request: Request) -> None:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise MediaTypeUnsupported(content_type or "none", "application/json")


def validate(model: type[_Model], value: Any) -> _Model:  # noqa: ANN401 - JSON is any
    """Return `value` as a model, or raise `ValidationFailed` with a JSON pointer per fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValidationFailed.of(error.errors(include_url=False, include_input=False)) from None


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the raw body, at most `max_bytes` of it.

    Raises:
        BodyTooLarge: There is more; what was declared is believed before anything is read.
    """
    if declared_bytes(request) > max_bytes:
        raise BodyTooLarge(max_bytes)
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return bytes(chunks)


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON is any
    """Parse strict JSON.

    Raises:
        JsonMalformed: Not UTF-8, not JSON, or holding NaN, Infinity, numbers beyond 64 bits,
            duplicate keys, lone surrogates, NUL characters, API keys or more than 32 levels.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError:
        raise JsonMalformed("it is not encoded in UTF-8") from None
    except RecursionError:
        raise JsonMalformed(f"more than {_MAX_DEPTH} levels of nesting") from None
    except json.JSONDecodeError as error:
        raise JsonMalformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    _check(value, depth=0)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise JsonMalformed(f"the key {_shown(key)} stands twice in one object")
        value[key] = item
    return value


def _refuse_constant(name: str) -> float:
    raise JsonMalformed(f"{name} is not a JSON number")


def _bounded_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _MAX_INTEGER:
        raise JsonMalformed(f"the integer {text[:24]} does not fit into 64 bits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise JsonMalformed(f"the number {text[:24]} is too large")
    return value


def _check(value: Any, depth: int) -> None:  # noqa: ANN401 - JSON is any
    if depth > _MAX_DEPTH:
        raise JsonMalformed(f"more than {_MAX_DEPTH} levels of nesting")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth + 1)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def _check_text(text: str) -> None:
    if "\x00" in text or not _is_encodable(text):
        raise JsonMalformed(f"the text {_shown(text)} holds a NUL or half a surrogate pair")
    if holds_key(text):
        raise JsonMalformed("an API key stands in it, and bodies are stored: rotate the key")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _shown(text: str) -> str:
    """Return at most 80 printable characters of something a client sent."""
    return ascii(text[:80])


def json_request(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return `openapi_extra` that shows what `json_body` reads."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": required, "content": content}}


def json_body(model: type[BaseModel], *, default: bool = False) -> Any:  # noqa: ANN401 - Depends
    """Return a dependency that reads the body strictly as `model`; see `read_model`."""

    async def read(request: Request) -> BaseModel:
        return await read_model(request, model, default=default)

    return Depends(read)
