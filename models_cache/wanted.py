"""What a call of the inference process asks for, checked: the header of its frame."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from models_cache.errors import WireMalformed


@dataclass(frozen=True)
class Wanted:
    """What a request asks for, and what its images are.

    Args:
        top_k: How many scores; None for all.
        max_error: Error budget, between 0 and 1, if there is one.
        features: Whether to return what the backbone makes of an image, too.
        logits: Whether to return what its scores are made of, too.
        preprocessed: Whether images are tensors as the network takes them, not encoded.
        timeout_seconds: After which nobody waits for the answer any more; None for never.
    """

    top_k: int | None
    max_error: float | None
    features: bool
    logits: bool
    preprocessed: bool
    timeout_seconds: float | None


def digest_of(message: object) -> str:
    """Return which artifact a call is about, or raise `WireMalformed`."""
    digest = message.get("artifact") if isinstance(message, dict) else None
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise WireMalformed(f"'artifact' is {str(digest)[:80]!r}, not a sha256 of 64 hex digits")
    return digest


def wanted_of(header: dict[str, Any]) -> Wanted:
    """Return what a call asks for, or raise `WireMalformed`."""
    return Wanted(
        top_k=_top_k_of(header),
        max_error=_max_error_of(header),
        features=_switch_of(header, "features"),
        logits=_switch_of(header, "logits"),
        preprocessed=_switch_of(header, "preprocessed"),
        timeout_seconds=_timeout_of(header),
    )


def _switch_of(header: dict[str, Any], name: str) -> bool:
    switch = header.get(name, False)
    if type(switch) is not bool:
        raise WireMalformed(f"{name!r} is {str(switch)[:80]!r}, not true or false")
    return switch


def _top_k_of(header: dict[str, Any]) -> int | None:
    top_k = header.get("top_k")
    if top_k is None or (type(top_k) is int and top_k >= 1):
        return top_k
    raise WireMalformed(f"'top_k' is {str(top_k)[:80]!r}, not a number from 1 on")


def _max_error_of(header: dict[str, Any]) -> float | None:
    max_error = header.get("max_error")
    if max_error is None or (type(max_error) is float and 0 < max_error < 1):
        return max_error
    raise WireMalformed(f"'max_error' is {str(max_error)[:80]!r}, not a number between 0 and 1")


def _timeout_of(header: dict[str, Any]) -> float | None:
    seconds = header.get("timeout_seconds")
    if seconds is None or (type(seconds) in (int, float) and 0 < seconds < math.inf):
        return seconds
    raise WireMalformed(f"'timeout_seconds' is {str(seconds)[:80]!r}, not a number above 0")
