"""Receipts: what a job's `resolved` fixes of its result, and what is different now.

Data digest, weights digest, every parameter, seed, versions, device, threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Another version of the program may well compute the same: told, not refused.
CODE_VERSION = "code_version"


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was recorded, a sentence each; what was not recorded is not one."""
    now = dict(_flat(found))
    return [
        f"{name} was {value!r} and is {now.get(name)!r}"
        for name, value in _flat(recorded)
        if name != CODE_VERSION and now.get(name) != value
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
