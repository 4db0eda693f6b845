"""Sends cases to a service and says what came back."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.abuse.case import OK, READY, Archive, Call, Outcome, Picture, Raw

_ANSWER_BYTES = 1 << 20
_ANSWER = re.compile(r"HTTP/1\.1 (?=\d{3} )")
_CODE = re.compile(r'"code": ?"([a-z0-9-]+)"')
_TIMEOUT_SECONDS = 15.0  # then what has come is taken, and judged too late


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        outcome: Status and code.
        text: Head and body, for what they must not hold.
        seconds: From the first byte that was sent to the last one that came.
        dataset: Of an upload that was accepted.
        media_type: Of the body.
    """

    outcome: Outcome
    text: str
    seconds: float
    dataset: str | None = None
    media_type: str = ""


@dataclass(frozen=True)
class Target:
    """A service, and what its paths and bodies may name.

    Args:
        url: Where it listens.
        names: What `{dataset}`, `{job}` and `{model}` stand for.
    """

    url: str
    names: dict[str, str]

    def filled(self, text: str) -> str:
        """Return a path or body with names in it."""
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text


def send(
    target: Target, http: httpx2.Client, request: Call | Archive | Picture | Raw, name: str
) -> Answer:
    """Send a request and return the answer; `name` is what a data set is called."""
    started = time.monotonic()
    if isinstance(request, Raw):
        status, text = exchange(target.url, request)
        return Answer(Outcome(status, _code_in(text)), text, time.monotonic() - started)
    answer = _sent(target, http, request, name)
    seconds = time.monotonic() - started
    body = _json(answer)
    head = "\n".join(f"{key}: {value}" for key, value in answer.headers.items())
    return Answer(
        Outcome(answer.status_code, _code_of(body)),
        f"{head}\n\n{answer.text[:_ANSWER_BYTES]}",
        seconds,
        body.get("id") if answer.status_code == 202 and isinstance(body, dict) else None,
        answer.headers.get("content-type", ""),
    )


def _sent(
    target: Target, http: httpx2.Client, request: Call | Archive | Picture, name: str
) -> httpx2.Response:
    if isinstance(request, Archive):
        return http.post("/v1/datasets", params={"name": name}, content=request.body())
    if isinstance(request, Picture):
        headers = {"content-type": "image/jpeg"}
        path = target.filled("/v1/models/{model}/predict")
        return http.post(path, content=request.body(), headers=headers)
    body = request.body()
    if b"{dataset}" in body:
        body = target.filled(body.decode()).encode()
    path = target.filled(request.path)
    return http.request(request.method, path, content=body, headers=dict(request.headers))


def exchange(url: str, raw: Raw) -> tuple[int, str]:
    """Send bytes on a new connection and return status and text of the first answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as connection:
        try:
            for part in raw.parts:
                connection.sendall(part())
                time.sleep(raw.pause_seconds)
        except OSError:
            pass  # it was refused while it was sent: the answer says why
        received = bytearray()
        try:
            while (data := connection.recv(1 << 16)) and len(received) < _ANSWER_BYTES:
                received += data
        except (ConnectionResetError, TimeoutError):
            pass
    text = received.decode("latin-1")
    first_line = text.partition("\r\n")[0].split(" ")
    return (int(first_line[1]) if len(first_line) > 1 else 0), text


def _json(answer: httpx2.Response) -> Any:  # noqa: ANN401 - JSON is any
    try:
        return answer.json()
    except ValueError:
        return None


def _code_of(body: Any) -> str:  # noqa: ANN401 - JSON is any
    if not isinstance(body, dict):
        return OK
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("code"))
    if "error" in body and isinstance(error, str):
        return "error"
    return str(body.get("code", READY if body.get("object") == "dataset" else OK))


def _code_in(text: str) -> str:
    """Return the code in the first answer of a connection."""
    first = _ANSWER.split(text, maxsplit=2)[1] if text else ""
    found = _CODE.search(first)
    return found[1] if found else OK
