"""What a case of abuse is, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Build = Callable[[], bytes]

READY = "ready"
OK = "ok"


@dataclass(frozen=True)
class Outcome:
    """How a service answered.

    Args:
        status: Of the answer; 0 if the connection was closed without one.
        code: Of the problem; of an upload that was accepted, why its data set was rejected or an
            image of it was left out; `ready` or `ok` if nothing is wrong.
    """

    status: int
    code: str


@dataclass(frozen=True)
class Call:
    """A request that an HTTP client can send.

    Args:
        method: Of HTTP.
        path: With the query. `{model}` and `{dataset}` become those of the run.
        body: Made when it is sent.
        headers: Beside those of the client.
    """

    method: str
    path: str
    body: Build = bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """An upload whose images are checked behind its answer; the data set's end is the outcome."""

    body: Build


@dataclass(frozen=True)
class Picture:
    """One image of a large upload, and the body of a prediction.

    Args:
        body: The encoded image.
        name: Its file name, if that matters.
    """

    body: Build
    name: str = "picture"


@dataclass(frozen=True)
class Row:
    """One line of a metadata file that many cases share.

    Args:
        label: Any JSON; of an accepted one the data set has to have that class.
        file_name: Empty: an image of its own.
    """

    label: object
    file_name: str = ""


@dataclass(frozen=True)
class Raw:
    """Bytes on a socket, with pauses between the parts; no HTTP client would send them."""

    parts: tuple[Build, ...]
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One requirement of the catalogue.

    Args:
        id: Number in the catalogue, and which of its forms: `A01-parent`.
        what: In a few words.
        send: The request.
        expect: What has to come back.
        seconds: Within which.
        finds: Codes that the report of the data set has to hold.
    """

    id: str
    what: str
    send: Call | Archive | Picture | Row | Raw
    expect: Outcome
    seconds: float = 5.0
    finds: frozenset[str] = frozenset()


def refused(status: int, code: str) -> Outcome:
    """Return the outcome of a request that is refused while its sender waits."""
    return Outcome(status, code)


def rejected(code: str) -> Outcome:
    """Return the outcome of an upload that is accepted and found unusable."""
    return Outcome(202, code)


ACCEPTED = Outcome(202, READY)


@dataclass(frozen=True)
class Hostile:
    """A file that has to be refused wherever it arrives.

    Args:
        id: See `Case`.
        what: In a few words.
        build: Makes the file.
        code: What it is refused with.
    """

    id: str
    what: str
    build: Build
    code: str
