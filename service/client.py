"""The Python client: a thin, synchronous view of the HTTP API.

from service.client import Graft

graft = Graft("http://127.0.0.1:8000")
dataset = graft.wait_for_dataset(graft.upload("photos.zip", name="ants-or-bees")["id"])
job = graft.wait_for_job(graft.submit(dataset["id"])["id"])
print(graft.predict(job["result"]["model"], "ant.jpg"))
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

DEFAULT_URL = "http://127.0.0.1:8000"
_CHUNK_BYTES = 1 << 20
_RECONNECT_SECONDS = 60.0
_ENDED_JOB = frozenset({"succeeded", "failed", "cancelled"})

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


class JobFailed(Exception):
    """A job that was waited for did not succeed; `job` is its last state."""

    def __init__(self, job: Json) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        error = self.job.get("error") or {}
        detail = error.get("detail", "no reason was given")
        return f"job {self.job['id']} {self.job['status']}: {detail}"


class DatasetRejected(Exception):
    """A data set that was waited for cannot be used; `dataset["problem"]` says why."""

    def __init__(self, dataset: Json) -> None:
        super().__init__(dataset)
        self.dataset = dataset

    def __str__(self) -> str:
        return f"data set {self.dataset['id']}: {self.dataset['problem']['detail']}"


class Graft:
    """A connection to one service.

    Args:
        url: Where it listens.
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

    def __enter__(self) -> Graft:
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

    # -- data sets ---------------------------------------------------------------------------

    def upload(
        self,
        archive: Path | str,
        *,
        name: str = "dataset",
        report: Report | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Upload labelled images (zip, tar, tar.gz, npz, HDF5); returns while it is being checked.

        Args:
            archive: The file.
            name: What to call the data set.
            report: Called with bytes sent and bytes in all.
            idempotency_key: Repeat a call with the same key and nothing is made twice.
        """
        return self._send(
            "/v1/datasets", Path(archive), report, idempotency_key, params={"name": name}
        )

    def add_images(
        self,
        dataset_id: str,
        archive: Path | str,
        *,
        report: Report | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Upload further images: a new version of the data set holds the old and the new ones."""
        path = f"/v1/datasets/{dataset_id}/versions"
        return self._send(path, Path(archive), report, idempotency_key)

    def dataset(self, dataset_id: str) -> Json:
        """Return a data set."""
        return self._call("GET", f"/v1/datasets/{dataset_id}")

    def datasets(self) -> Iterator[Json]:
        """Yield every data set, newest first."""
        return self._list("/v1/datasets")

    def report(self, dataset_id: str) -> Json:
        """Return what was found in the upload, and by the newest job on it."""
        return self._call("GET", f"/v1/datasets/{dataset_id}/report")

    def images(self, dataset_id: str, *, split: str | None = None) -> list[Json]:
        """Return the images of a data set, of all splits or one."""
        params = {} if split is None else {"split": split}
        return list(self._list(f"/v1/datasets/{dataset_id}/images", params))

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a data set."""
        self._call("DELETE", f"/v1/datasets/{dataset_id}")

    def wait_for_dataset(self, dataset_id: str, poll_seconds: float = 0.1) -> Json:
        """Return the data set once it is ready.

        Raises:
            DatasetRejected: It cannot be used.
        """
        while (dataset := self.dataset(dataset_id))["status"] == "processing":
            time.sleep(poll_seconds)
        if dataset["status"] == "rejected":
            raise DatasetRejected(dataset)
        return dataset

    # -- jobs --------------------------------------------------------------------------------

    def submit(self, dataset: str, *, idempotency_key: str | None = None, **fields: Any) -> Json:  # noqa: ANN401
        """Queue a job; `fields` are those of `POST /v1/jobs`, such as `backbone` and `recipe`."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        body = {"dataset": dataset, **fields}
        return self._call("POST", "/v1/jobs", json=body, headers=headers)

    def job(self, job_id: str) -> Json:
        """Return a job."""
        return self._call("GET", f"/v1/jobs/{job_id}")

    def jobs(self) -> Iterator[Json]:
        """Yield every job, newest first."""
        return self._list("/v1/jobs")

    def act(self, job_id: str, action: str) -> Json:
        """Do `cancel`, `pause`, `resume` or `retry`."""
        return self._call("POST", f"/v1/jobs/{job_id}/{action}")

    def reproduce(self, job_id: str) -> Json:
        """Repeat an ended job to the bit; the new job fails if something is not as it was."""
        return self._call("POST", f"/v1/jobs/{job_id}/retry", json={"reproduce": True})

    def events(self, job_id: str) -> Iterator[Json]:
        """Yield a job's events as they happen, until its end; reconnects where it was.

        Raises:
            httpx2.TransportError: The service could not be reached for a minute.
        """
        last_id, heard_at = "0", time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
            try:
                for event in self._stream(f"/v1/jobs/{job_id}/events", headers):
                    last_id, heard_at = event.pop("id", last_id), time.monotonic()
                    yield event
                    if event["event"] == "end":
                        return
            except httpx2.TransportError:
                if time.monotonic() - heard_at > _RECONNECT_SECONDS:
                    raise
            time.sleep(0.5)

    def delete_job(self, job_id: str) -> None:
        """Delete an ended job and its log."""
        self._call("DELETE", f"/v1/jobs/{job_id}")

    def wait_for_job(self, job_id: str, poll_seconds: float = 0.1) -> Json:
        """Return the job once it has succeeded.

        Raises:
            JobFailed: It failed or was cancelled.
        """
        while (job := self.job(job_id))["status"] not in _ENDED_JOB:
            time.sleep(poll_seconds)
        if job["status"] != "succeeded":
            raise JobFailed(job)
        return job

    # -- models ------------------------------------------------------------------------------

    def models(self) -> Iterator[Json]:
        """Yield every model by name."""
        return self._list("/v1/models")

    def model(self, name: str) -> Json:
        """Return a model with its versions and aliases."""
        return self._call("GET", f"/v1/models/{name}")

    def delete_model(self, name: str) -> None:
        """Delete a model with all its versions."""
        self._call("DELETE", f"/v1/models/{name}")

    def set_alias(
        self, name: str, alias: str, version: int, *, if_current: int | None = None
    ) -> Json:
        """Promote or roll back."""
        body = {"version": version, "if_current": if_current}
        return self._call("PUT", f"/v1/models/{name}/aliases/{alias}", json=body)

    def evaluation(self, name: str, version: int) -> Json:
        """Return the evaluation of a version on held-out images."""
        return self._call("GET", f"/v1/models/{name}/versions/{version}/evaluation")

    def predict(
        self,
        reference: str,
        *images: Path | str | bytes,
        top_k: int | None = None,
        max_error: float | None = None,
    ) -> Json:
        """Predict images, given as files or bytes; up to 32 in one call.

        Args:
            reference: `name`, `name@alias` or `name@version`.
            images: Paths, or encoded images as bytes.
            top_k: How many labels per image; None for all.
            max_error: Error budget between 0 and 1; the model abstains where it cannot keep it.
        """
        data = [image if isinstance(image, bytes) else Path(image).read_bytes() for image in images]
        asked = {"top_k": top_k, "max_error": max_error}
        params = {name: str(value) for name, value in asked.items() if value is not None}
        path = f"/v1/models/{reference}/predict"
        if len(data) == 1:
            headers = {"Content-Type": "application/octet-stream"}
            return self._call("POST", path, params=params, content=data[0], headers=headers)
        files = [("files", (f"{index}", item)) for index, item in enumerate(data)]
        return self._call("POST", path, params=params, files=files)

    def download_archive(self, name: str, version: int, destination: Path | str) -> Path:
        """Save an artifact as a zip file."""
        path = Path(destination)
        url = f"/v1/models/{name}/versions/{version}/archive"
        with self._http.stream("GET", url) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _problem(answer)
            with path.open("wb") as file:
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
        return path

    def import_archive(self, name: str, archive: Path | str) -> Json:
        """Publish a downloaded artifact as the next version of a model."""
        return self._send(f"/v1/models/{name}/versions", Path(archive), None, None)

    # -- service -----------------------------------------------------------------------------

    def backbones(self, *, downloaded: bool | None = None) -> list[Json]:
        """Return the catalogue of backbones."""
        params = {} if downloaded is None else {"downloaded": str(downloaded).lower()}
        return list(self._list("/v1/backbones", params))

    def download_weights(self, architecture: str, weights: str = "DEFAULT") -> Json:
        """Fetch weights in the background."""
        body = {"weights": weights}
        return self._call("POST", f"/v1/backbones/{architecture}/download", json=body)

    def is_ready(self) -> bool:
        """Tell whether the service can do everything."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

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


def wait_until_ready(client: Graft, timeout_seconds: float = 120.0) -> None:
    """Return once the service can do everything.

    Raises:
        TimeoutError: It could not within the time.
    """
    deadline = time.monotonic() + timeout_seconds
    while not client.is_ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the service is not ready after {timeout_seconds:.0f} seconds")
        time.sleep(0.1)


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
