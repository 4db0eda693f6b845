"""API keys as text: how one is made, told from a typo, hashed, and kept out of what is written.

A key is `graft_`, 43 characters of base 62 (32 random bytes) and 6 of a CRC-32 over what stands
before them. The checksum tells a typo from a key that is not known here, without a database; it is
no secret and protects nothing.

Only the SHA-256 of a key is stored. Slow hashes (bcrypt, argon2) make up for passwords that can be
guessed; 256 random bits cannot be, however fast a guess is tried, and a slow hash would cost each
request what an attacker should pay.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

PREFIX = "graft_"
PROJECT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_BYTES = 32
_SECRET_DIGITS, _CHECK_DIGITS = 43, 6  # the fewest that hold 256 and 32 bits
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_DIGITS + _CHECK_DIGITS}}}")
#: Also what a key with a typo, or most of one, looks like.
_LIKE_A_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{32,}}")
_HIDDEN = f"{PREFIX}***"


class Scope(StrEnum):
    """What a key may do; each may also do what those before it may."""

    READ = "read"  # look, and ask models
    TRAIN = "train"  # make, change and delete
    ADMIN = "admin"  # keys and the audit log of its project

    def covers(self, other: Scope) -> bool:
        """Tell whether who may do this may do the other."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Limits:
    """How much a key may use; None: no bound of its own.

    Args:
        requests_per_minute: Of the key.
        unfinished_jobs: Of the key's project, that people asked for.
        datasets: Of the key's project.
        stored_bytes: Of the key's project: archives and feedback as they were uploaded.
    """

    requests_per_minute: int | None = None
    unfinished_jobs: int | None = None
    datasets: int | None = None
    stored_bytes: int | None = None

    def or_else(self, other: Limits) -> Limits:
        """Return these, with the other's where there is none."""
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return Limits(**{**asdict(other), **own})

    def as_json(self) -> dict[str, int]:
        """Return those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of_json(cls, stored: dict[str, Any]) -> Limits:
        """Return what `as_json` gave."""
        return cls(**{field.name: stored.get(field.name) for field in fields(cls)})


def new_key() -> str:
    """Return a new key, which nobody can guess; it is shown once and not stored."""
    body = PREFIX + _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_DIGITS)
    return body + _checksum(body)


def is_well_formed(text: str) -> bool:
    """Tell whether a text is a key without a typo, whoever made it."""
    if _KEY.fullmatch(text) is None:
        return False
    return _checksum(text[:-_CHECK_DIGITS]) == text[-_CHECK_DIGITS:]


def sha256_of_key(key: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def holds_key(text: str) -> bool:
    """Tell whether something that looks like a key stands in a text."""
    return PREFIX in text and _LIKE_A_KEY.search(text) is not None


def without_keys(text: str) -> str:
    """Return a text for logs and answers: what looks like a key is left out."""
    return _LIKE_A_KEY.sub(_HIDDEN, text) if PREFIX in text else text


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_DIGITS)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
