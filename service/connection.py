"""One connection to a service: requests, uploads, lists, event streams, problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

DEFAULT_URL = "http://127.0.0.1:8000"
_CHUNK_BYTES = 1 << 20

Json = dict[str, Any]
Report = Callable[[int, int], None]


class GraftProblem(Exception):
    """The service refused a request; `problem` is its `application/problem+json` body."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", "unknown"))

    def __str__(self) -> str:
        lines = [str(self.problem.get("detail", f"HTTP {self.status}"))]
        lines += [f"  {e['pointer']}: {e['message']}" for e in self.problem.get("errors", [])]
        return "\n".join(lines)


class Connection:
    """What every call goes through.

    Args:
        url: Where the service listens.
        key: API key, if the service asks for one.
        timeout_seconds: Bound on one request; uploads and waits have none.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, timeout_seconds: float = 60.0
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(
            base_url=url, headers=headers, timeout=timeout_seconds, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _send(
        self,
        url: str,
        path: Path,
        report: Report | None,
        idempotency_key: str | None,
        params: dict[str, str] | None = None,
    ) -> Json:
        """Stream a file as the body of a POST; it may take as long as it takes."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        content = _chunks(path, report)
        return self._call(
            "POST", url, params=params or {}, content=content, headers=headers, timeout=None
        )

    def _save(self, url: str, destination: Path | str) -> Path:
        """Save the body of a GET as a file."""
        path = Path(destination)
        with self._http.stream("GET", url, timeout=None) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _problem(answer)
            with path.open("wb") as file:
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
        return path

    def _send_images(self, path: str, images: Sequence[Path | str | bytes], asked: Json) -> Json:
        """POST encoded images: one as the raw body, several as multipart `files`."""
        data = [image if isinstance(image, bytes) else Path(image).read_bytes() for image in images]
        params = {name: str(value) for name, value in asked.items() if value is not None}
        if len(data) == 1:
            headers = {"Content-Type": "application/octet-stream"}
            return self._call("POST", path, params=params, content=data[0], headers=headers)
        files = [("files", (f"{index}", item)) for index, item in enumerate(data)]
        return self._call("POST", path, params=params, files=files)

    def _list(self, path: str, params: dict[str, str] | None = None) -> Iterator[Json]:
        query = {"limit": "100", **(params or {})}
        while True:
            page = self._call("GET", path, params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["next"]

    def _call(self, method: str, path: str, **options: Any) -> Json:  # noqa: ANN401
        answer = self._http.request(method, path, **options)
        if answer.status_code >= 400:
            raise _problem(answer)
        return dict(answer.json()) if answer.content else {}

    def _stream(self, path: str, headers: dict[str, str]) -> Iterator[Json]:
        with self._http.stream("GET", path, headers=headers, timeout=None) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _problem(answer)
            event: Json = {}
            for line in answer.iter_lines():
                if not line and event:
                    yield event
                    event = {}
                name, _, value = line.partition(": ")
                if name in ("event", "id"):
                    event[name] = value
                elif name == "data":
                    event["data"] = json.loads(value)


def _chunks(path: Path, report: Report | None) -> Iterator[bytes]:
    total_bytes, done_bytes = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            done_bytes += len(chunk)
            if report is not None:
                report(done_bytes, total_bytes)


def _problem(answer: httpx2.Response) -> GraftProblem:
    try:
        body = answer.json()
    except ValueError:
        body = {"detail": answer.text[:200]}
    return GraftProblem(answer.status_code, body)
