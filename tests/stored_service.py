"""Rows and files as a service leaves them, made in a moment, without images that can be decoded."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from jobs.datasets.manifest import LabelledImage, build_manifest
from jobs.states import JobEvent
from jobs.store import datasets, events, feedback, jobs, leases, models, rows, tables, workers
from jobs.store.database import Database, utc_now
from jobs.store.feedback import NewFeedback
from jobs.store.jobs import Lease, NewJob
from jobs.store.models import NewVersion
from models_cache.blobs import BlobStore

PROJECT = "default"


@dataclass
class StoredService:
    """A data folder and its database.

    Args:
        folder: The data folder.
        database: Its rows.
        chance: Where its bytes come from.
    """

    folder: Path
    database: Database
    chance: random.Random

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.folder / "blobs")

    def some_bytes(self, size_bytes: int = 400) -> bytes:
        return self.chance.randbytes(size_bytes)

    def add_dataset(self, dataset_id: str, images: int = 4) -> list[str]:
        """Add a data set that is ready; return the names of its images."""
        kept = [self.blobs.put_bytes(self.some_bytes()) for _ in range(images)]
        labelled = [
            LabelledImage(b.sha256, b.size_bytes, f"{n}.png", 8, 8, "train", "ab"[n % 2])
            for n, b in enumerate(kept)
        ]
        manifest = build_manifest(labelled, "ab")
        archive = self.blobs.put_bytes(self.some_bytes())
        facts = {
            "manifest_sha256": manifest.store(self.blobs).sha256,
            "report_sha256": self.blobs.put_bytes(self.some_bytes()).sha256,
            "digest": manifest.digest,
            "task": manifest.task,
            "classes": list(manifest.classes),
            "splits": manifest.counts(),
        }
        with self.database.write("test") as connection:
            kept_archive = (archive.sha256, archive.size_bytes)
            datasets.add(connection, dataset_id, f"n{dataset_id}", kept_archive, project=PROJECT)
            datasets.set_ready(connection, dataset_id, facts)
        return [blob.sha256 for blob in kept]

    def add_version(self, name: str, job_id: str | None = None) -> models.Version:
        """Publish a version whose files are of random bytes."""
        parts = {n: self.blobs.put_bytes(self.some_bytes()) for n in ("model", "golden")}
        new = NewVersion(
            project=PROJECT,
            name=name,
            artifact_digest=self.blobs.put_bytes(self.some_bytes()).sha256,
            files={n: blob.as_json() for n, blob in parts.items()},
            task="classification",
            architecture="resnet18",
            classes=["ä", "b"],
            metrics={"val/accuracy_top1": 0.5},
            job_id=job_id,
        )
        with self.database.write("test") as connection:
            return models.publish(connection, new, promote=True)

    def add_feedback(self, feedback_id: str, model: str) -> str:
        blob = self.blobs.put_bytes(self.some_bytes())
        said = NewFeedback(
            project=PROJECT,
            id=feedback_id,
            model=model,
            version=1,
            image_sha256=blob.sha256,
            image_bytes=blob.size_bytes,
            labels=["b"],
            predicted={"label": "ä"},
        )
        with self.database.write("test") as connection:
            feedback.add(connection, [said])
        return blob.sha256

    def add_job(self, job_id: str, kind: str = "fine_tune", dataset_id: str | None = None) -> None:
        with self.database.write("test") as connection:
            new = NewJob(id=job_id, project=PROJECT, type=kind, spec={}, dataset_id=dataset_id)
            jobs.accept(connection, new)

    def run_job(self, job_id: str) -> Lease:
        """Let a worker of another host hold the job; its run folder has a file and a checkpoint."""
        token = f"token-{job_id}"
        with self.database.write("test") as connection:
            workers.register(connection, f"worker-{job_id}", "elsewhere", 1, "cpu")
            kinds = tuple(sorted(jobs.PUBLIC_TYPES))
            worker = f"worker-{job_id}"
            job = leases.claim(connection, kinds, worker, token, timedelta(minutes=9))
            assert job is not None
            assert job.id == job_id
            events.append(connection, job_id, [("metrics", {"step": 1, "train/loss": 0.5})])
        for name in ("metrics.jsonl", "1/log.txt", "checkpoints/1.safetensors"):
            path = self.folder / "runs" / job_id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.some_bytes())
        return Lease(job_id, token)

    def end_job(self, job_id: str, result: dict[str, Any], ago: timedelta = timedelta()) -> None:
        """Let a job succeed, so long ago."""
        lease = self.run_job(job_id)
        with self.database.write("test") as connection:
            changes = {"result": result}
            jobs.transition(
                connection,
                job_id,
                JobEvent.SUCCEED,
                lease=lease,
                changes=changes,
                project=PROJECT,
            )
            ended = update(tables.jobs).where(tables.jobs.c.id == job_id)
            connection.execute(ended.values(finished_at=utc_now() - ago))

    def rows(self) -> dict[str, list[list[Any]]]:
        """Return every row of every table."""
        return rows_of(self.database)


def rows_of(database: Database) -> dict[str, list[list[Any]]]:
    with database.read() as connection:
        return {
            table.name: list(rows.read_rows(connection, table))
            for table in rows.tables_of(connection)
        }


def stored_service(folder: Path, url: str, seed: int = 0) -> StoredService:
    """Make a service with a row of every kind and every file that they point to."""
    database = Database(url)
    database.migrate()
    made = StoredService(folder, database, random.Random(seed))  # noqa: S311
    made.add_dataset("ds_1")
    made.add_job("job_1", dataset_id="ds_1")
    made.end_job("job_1", {"model": "m", "version": 1})
    made.add_version("m", "job_1")
    made.add_feedback("fb_1", "m")
    made.add_job("job_2", "export")
    exported = made.blobs.put_bytes(made.some_bytes())
    made.end_job("job_2", {"file": exported.as_json()})
    made.add_job("job_3", dataset_id="ds_1")
    made.run_job("job_3")
    made.add_job("job_4", dataset_id="ds_1")
    weights = folder / "weights"
    weights.mkdir(parents=True)
    (weights / "learned.json").write_bytes(b"{}")
    (weights / "some.pth").write_bytes(made.some_bytes())
    return made
