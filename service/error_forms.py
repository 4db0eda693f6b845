"""How an error looks on the routes of other protocols, in the words that their clients read.

What went wrong and its code are the same as on our own routes. Where ours tell bad requests apart
(415, 422), these protocols know one status: 400.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_BAD_REQUEST = 400
_STATUS = {415: _BAD_REQUEST, 422: _BAD_REQUEST}


@dataclass(frozen=True)
class Told:
    """What is said of an error, whatever the form.

    Args:
        status: Of the answer on our own routes.
        code: Stable, kebab-case.
        detail: A sentence.
        faults: `{"pointer", "code", "message"}` per field that cannot be accepted.
    """

    status: int
    code: str
    detail: str
    faults: Sequence[dict[str, str]]

    @property
    def sentence(self) -> str:
        """The detail, and what is wrong with each field."""
        fields = [f"{fault['pointer'] or '/'}: {fault['message']}" for fault in self.faults]
        return "; ".join([self.detail, *fields])


def foreign_error(path: str, told: Told) -> tuple[int, dict[str, Any]] | None:
    """Return status and body of an error in the form of the protocol that `path` belongs to.

    None on our own routes.
    """
    for prefix, form in _FORMS:
        if path == prefix or path.startswith(f"{prefix}/"):
            return _STATUS.get(told.status, told.status), form(told)
    return None


def _one_sentence(told: Told) -> dict[str, Any]:
    return {"error": told.sentence}


def _openai(told: Told) -> dict[str, Any]:
    field = told.faults[0]["pointer"].strip("/").replace("/", ".") if told.faults else ""
    kind = "invalid_request_error" if told.status < 500 else "server_error"
    error = {"message": told.sentence, "type": kind, "param": field or None, "code": told.code}
    return {"error": error}


_FORMS: tuple[tuple[str, Callable[[Told], dict[str, Any]]], ...] = (
    ("/v2", _one_sentence),
    ("/hf", _one_sentence),
    ("/v1/files", _openai),
    ("/v1/uploads", _openai),
    ("/v1/fine_tuning", _openai),
)
