"""The user's weights catalogue files: read strictly, refused with entry and reason.

A file adds weights to architectures that torchvision builds:

    {"weights": [{"architecture": "mobilenet_v2", "name": "IMAGENET1K_PORT",
                  "file": "mobilenet_v2-56a4ce62.pth", "sha256": "56a4...", "head": false,
                  "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                  "resize": 256, "crop": 224, "license": "...", "source": "..."}]}

`interpolation` (`bilinear` if left out) is the one optional field. `head` says whether the file
holds the classifier as well. The full hash is required: it is what the file is trusted by.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from models_cache.preprocessing import Interpolation, Preprocessing
from models_cache.weights_errors import CatalogueInvalid

_MAX_FILE_BYTES = 4 << 20  # a catalogue is a page of text
_MAX_SIDE_PX = 4096
_MAX_TEXT_CHARACTERS = 2000

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.(pth|pt|safetensors)")
SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ARCHITECTURE = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class CatalogueEntry:
    """One checked entry of a catalogue file; the fields are the file's."""

    architecture: str
    name: str
    file: str
    sha256: str
    head: bool
    preprocessing: Preprocessing
    license: str
    source: str


def read_catalogue_file(path: Path) -> list[CatalogueEntry]:
    """Read and check a weights catalogue file.

    Raises:
        CatalogueInvalid: The file cannot be read, is not JSON, or an entry has unknown, missing
            or malformed fields; the sentence names path, entry index and reason.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CatalogueInvalid(str(path), f"it is larger than {_MAX_FILE_BYTES} bytes")
        value = parse_strictly(path.read_bytes())
    except OSError as error:
        raise CatalogueInvalid(str(path), error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise CatalogueInvalid(str(path), f"it is not JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != {"weights"}:
        raise CatalogueInvalid(str(path), "it must be an object with the one field 'weights'")
    if not isinstance(value["weights"], list):
        raise CatalogueInvalid(str(path), "'weights' must be a list")
    entries = []
    for index, item in enumerate(value["weights"]):
        try:
            entries.append(parse_entry(item))
        except ValueError as error:
            raise CatalogueInvalid(str(path), f"entry {index}: {error}") from error
    return entries


def parse_strictly(data: bytes) -> Any:  # noqa: ANN401 - JSON is any
    """Parse JSON; duplicate names, NaN and Infinity are `ValueError`s."""
    return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return value


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def parse_entry(item: object) -> CatalogueEntry:
    """Check one entry; a `ValueError` says what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError("it must be an object")  # noqa: TRY004 - one kind of refusal
    optional = {"interpolation"}
    if unknown := sorted(set(item) - set(_CHECKS)):
        raise ValueError(f"unknown fields {unknown}")
    if missing := sorted(set(_CHECKS) - set(item) - optional):
        raise ValueError(f"missing fields {missing}")
    for field, value in item.items():
        problem = _CHECKS[field](value)
        if problem is not None:
            raise ValueError(f"{field!r} {problem}")
    preprocessing = Preprocessing(
        resize_px=item["resize"],
        crop_px=item["crop"],
        interpolation=cast(Interpolation, item.get("interpolation", "bilinear")),
        mean=_triple(item["mean"]),
        std=_triple(item["std"]),
    )
    plain = ("architecture", "name", "file", "sha256", "head", "license", "source")
    return CatalogueEntry(preprocessing=preprocessing, **{field: item[field] for field in plain})


def _triple(values: list[float]) -> tuple[float, float, float]:
    return (float(values[0]), float(values[1]), float(values[2]))


def _matching(pattern: re.Pattern[str], meaning: str) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        good = isinstance(value, str) and pattern.fullmatch(value)
        return None if good else f"must be {meaning}, not {_shown(value)}"

    return check


def _check_name(value: object) -> str | None:
    if value == "DEFAULT":
        return "must not be 'DEFAULT', which has a meaning of its own"
    return _matching(_NAME, "letters, digits, dots, dashes and underscores")(value)


def _check_flag(value: object) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {_shown(value)}"


def _check_side(value: object) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE_PX
    return None if good else f"must be a whole number in 1..{_MAX_SIDE_PX}, not {_shown(value)}"


def _check_text(value: object) -> str | None:
    good = isinstance(value, str) and 0 < len(value) <= _MAX_TEXT_CHARACTERS
    return None if good else f"must be text of 1..{_MAX_TEXT_CHARACTERS} characters"


def _check_interpolation(value: object) -> str | None:
    return None if value in ("nearest", "bilinear", "bicubic") else f"is unknown: {_shown(value)}"


def _numbers(*, positive: bool) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        good = isinstance(value, list) and len(value) == 3 and all(_is_number(x) for x in value)
        if not good:
            return f"must be three finite numbers, not {_shown(value)}"
        if positive and min(cast(list[float], value)) <= 0:
            return "must be three numbers above 0"
        return None

    return check


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(cast(float, value)) < 1e6 and math.isfinite(cast(float, value))


def _shown(value: object) -> str:
    return repr(value)[:80]


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "architecture": _matching(_ARCHITECTURE, "the name of a torchvision builder"),
    "name": _check_name,
    "file": _matching(FILE_NAME, "a plain file name ending in .pth, .pt or .safetensors"),
    "sha256": _matching(SHA256, "64 lower-case hex digits"),
    "head": _check_flag,
    "mean": _numbers(positive=False),
    "std": _numbers(positive=True),
    "resize": _check_side,
    "crop": _check_side,
    "interpolation": _check_interpolation,
    "license": _check_text,
    "source": _check_text,
}
