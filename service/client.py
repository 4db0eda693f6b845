"""The Python client: a thin, synchronous view of the HTTP API.

from service.client import Graft

graft = Graft("http://127.0.0.1:8000")
dataset = graft.wait_for_dataset(graft.upload("photos.zip", name="ants-or-bees")["id"])
job = graft.wait_for_job(graft.submit(dataset["id"])["id"])
print(graft.predict(job["result"]["model"], "ant.jpg"))
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from service.connection import DEFAULT_URL, Connection, GraftProblem, Json, Report

__all__ = [
    "DEFAULT_URL",
    "DatasetRejected",
    "Graft",
    "GraftProblem",
    "JobFailed",
    "Json",
    "Report",
    "wait_until_ready",
]

_RECONNECT_SECONDS = 60.0
_ENDED_JOB = frozenset({"succeeded", "failed", "cancelled"})


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


class Graft(Connection):
    """A connection to one service.

    Args:
        url: Where it listens.
        key: API key, if the service asks for one.
        timeout_seconds: Bound on one request; uploads and waits have none.
    """

    # -- data sets ---------------------------------------------------------------------------

    def upload(
        self,
        archive: Path | str,
        *,
        name: str = "dataset",
        labelled: bool = True,
        report: Report | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Upload labelled images (zip, tar, tar.gz, npz, HDF5); returns while it is being checked.

        Args:
            archive: The file.
            name: What to call the data set.
            labelled: Whether the images have labels; without, a model can only predict them.
            report: Called with bytes sent and bytes in all.
            idempotency_key: Repeat a call with the same key and nothing is made twice.
        """
        return self._send(
            "/v1/datasets",
            Path(archive),
            report,
            idempotency_key,
            params={"name": name, "labels": "required" if labelled else "none"},
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

    def webhook_deliveries(self, job_id: str) -> list[Json]:
        """Return the messages about a job's end, with their attempts."""
        return list(self._list(f"/v1/jobs/{job_id}/webhook/deliveries"))

    def redeliver(self, job_id: str, delivery_id: str) -> Json:
        """Have a message sent again."""
        path = f"/v1/jobs/{job_id}/webhook/deliveries/{delivery_id}/redeliver"
        return self._call("POST", path)

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

    def save_file(self, job_id: str, name: str, destination: Path | str) -> Path:
        """Save a file of a job, such as `predictions.csv`."""
        return self._save(f"/v1/jobs/{job_id}/files/{name}", destination)

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

    def remove_alias(self, name: str, alias: str) -> None:
        """Remove an alias; the version it points to stays."""
        self._call("DELETE", f"/v1/models/{name}/aliases/{alias}")

    def shadow(self, name: str) -> Json:
        """Return how candidates (alias `shadow`) answered beside the served version."""
        return self._call("GET", f"/v1/models/{name}/shadow")

    def evaluation(self, name: str, version: int) -> Json:
        """Return the evaluation of a version on held-out images."""
        return self._call("GET", f"/v1/models/{name}/versions/{version}/evaluation")

    def evaluate(self, reference: str, dataset: str, *, split: str | None = None) -> Json:
        """Have a version judged by a labelled data set; returns the job, to be waited for.

        Args:
            reference: `name`, `name@alias` or `name@version`.
            dataset: Id of the data set.
            split: `train`, `val` or `test`; None for the first of test, val and all that has some.
        """
        parameters = {} if split is None else {"split": split}
        return self.submit(dataset, type="evaluate", model=reference, parameters=parameters)

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
        asked = {"top_k": top_k, "max_error": max_error}
        return self._send_images(f"/v1/models/{reference}/predict", images, asked)

    def embed(
        self, reference: str, *images: Path | str | bytes, normalize: bool = False
    ) -> list[list[float] | None]:
        """Return the features of images, as the model's head sees them; None: unreadable."""
        asked = {"normalize": str(normalize).lower()}
        answer = self._send_images(f"/v1/models/{reference}/embed", images, asked)
        return [item["embedding"] for item in answer["embeddings"]]

    def similar(
        self, reference: str, *images: Path | str | bytes, k: int = 5, dataset: str | None = None
    ) -> list[list[Json]]:
        """Return the nearest images of a data set for each image.

        Args:
            reference: `name`, `name@alias` or `name@version`.
            images: Paths, or encoded images as bytes.
            k: How many.
            dataset: Whose images; None for those that the model learned from.
        """
        asked = {"k": k, "dataset": dataset}
        answer = self._send_images(f"/v1/models/{reference}/similar", images, asked)
        return [item["neighbours"] for item in answer["results"]]

    def feedback(self, reference: str, image: Path | str | bytes, *labels: str) -> Json:
        """Say what an image really shows; several labels only for models of several."""
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        said: Json = {"label": labels[0]} if len(labels) == 1 else {"labels": list(labels)}
        body = {"inputs": [{"b64": base64.b64encode(data).decode(), **said}]}
        answer = self._call("POST", f"/v1/models/{reference}/feedback", json=body)
        return dict(answer["data"][0])

    def feedback_about(self, name: str) -> Iterator[Json]:
        """Yield what was said about a model's images, oldest first."""
        return self._list(f"/v1/models/{name}/feedback")

    def apply_feedback(self, reference: str, *, retrain: bool = True) -> Json:
        """Make a version of the data set with all feedback, and learn from it if asked."""
        body = {"retrain": retrain}
        return self._call("POST", f"/v1/models/{reference}/feedback/apply", json=body)

    def download_archive(self, name: str, version: int, destination: Path | str) -> Path:
        """Save an artifact as a zip file."""
        return self._save(f"/v1/models/{name}/versions/{version}/archive", destination)

    def export(self, name: str, version: int, format: str = "onnx") -> Json:  # noqa: A002
        """Export a version as `onnx` or `torch_export`; `wait_for_job` of its id waits for it."""
        path = f"/v1/models/{name}/versions/{version}/exports"
        return self._call("POST", path, json={"format": format})

    def export_of(self, name: str, version: int, export_id: str) -> Json:
        """Return an export."""
        return self._call("GET", f"/v1/models/{name}/versions/{version}/exports/{export_id}")

    def download_export(
        self, name: str, version: int, export_id: str, destination: Path | str
    ) -> Path:
        """Save an export as a zip file."""
        path = f"/v1/models/{name}/versions/{version}/exports/{export_id}/file"
        return self._save(path, destination)

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
