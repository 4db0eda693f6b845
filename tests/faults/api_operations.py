"""One call of each kind that changes something, for striking its fault points.

Jobs stay queued here, since no worker runs; rows that a call needs are put there by the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.store import datasets, models
from jobs.store.database import Database
from models_cache.blobs import BlobStore
from service.client import Graft, Json
from tests import images
from tests.faults.history import PatientClient

_HEAD = {"backbone": "squeezenet1_1", "recipe": "head"}


@dataclass
class ApiGround:
    """What operations work with.

    Args:
        data_folder: State of the api.
        beside: A folder for files that clients have.
        client: Records and repeats.
        database: The api's.
        turn: Counts operations, so that none meets what another left.
    """

    data_folder: Path
    beside: Path
    client: PatientClient
    database: Database
    turn: int = 0

    @property
    def graft(self) -> Graft:
        """The connection."""
        return self.client.graft

    def key(self) -> str:
        """Return a key that no earlier wish had."""
        self.turn += 1
        return f"wish-{self.turn}"

    def archive(self, key: str) -> Path:
        """Write an archive whose bytes no other upload has."""
        path = self.beside / f"{key}.zip"
        return images.write_zip(path, images.class_folders(per_class=2, first_seed=7 * self.turn))

    def dataset(self) -> str:
        """Put a data set there."""
        dataset_id = f"ds_{self.key().replace('-', '')}"
        archive = BlobStore(self.data_folder / "blobs").put_bytes(dataset_id.encode())
        with self.database.write("setup") as connection:
            kept = (archive.sha256, archive.size_bytes)
            datasets.add(connection, dataset_id, dataset_id, kept, project="default")
            facts = {
                "manifest_sha256": archive.sha256,
                "digest": "0" * 64,
                "task": "classification",
            }
            datasets.set_ready(connection, dataset_id, facts)
        return dataset_id

    def job(self) -> str:
        """Have a job accepted."""
        made: Json = self.client.submit(self.dataset(), self.key(), **_HEAD)
        return str(made["id"])

    def version(self, count: int = 1) -> str:
        """Put a model with some versions there; its files are nobody's concern here."""
        name = self.key()
        with self.database.write("setup") as connection:
            for number in range(count):
                digest = hashlib.sha256(f"{name}{number}".encode()).hexdigest()
                new = models.NewVersion(
                    project="default",
                    name=name,
                    artifact_digest=digest,
                    files={},
                    task="classification",
                    architecture="resnet18",
                    classes=["a"],
                    metrics={},
                )
                models.publish(connection, new, promote=True)
        return name


def upload(ground: ApiGround) -> None:
    key = ground.key()
    ground.client.upload(ground.archive(key), key, name=key)


def upload_in_parts(ground: ApiGround) -> None:
    key = ground.key()
    archive = ground.archive(key).read_bytes()
    about = {
        "bytes": len(archive), "filename": f"{key}.zip", "mime_type": "application/zip",
        "purpose": "fine-tune",
    }  # fmt: skip
    post = ground.graft._call
    begun = ground.client.wish("parts", key, lambda: post("POST", "/v1/uploads", json=about))
    path = f"/v1/uploads/{begun['id']}"
    part = ground.client.wish(
        "part", key, lambda: post("POST", f"{path}/parts", files={"data": ("part", archive)})
    )
    ground.client.wish(
        "complete", key, lambda: post("POST", f"{path}/complete", json={"part_ids": [part["id"]]})
    )


def submit(ground: ApiGround) -> None:
    ground.job()


def cancel(ground: ApiGround) -> None:
    ground.client.act(ground.job(), "cancel")


def pause(ground: ApiGround) -> None:
    ground.client.act(ground.job(), "pause")


def resume(ground: ApiGround) -> None:
    job_id = ground.job()
    ground.client.act(job_id, "pause")
    ground.client.act(job_id, "resume")


def retry(ground: ApiGround) -> None:
    job_id = ground.job()
    ground.client.act(job_id, "cancel")
    ground.client.act(job_id, "retry")


def job_delete(ground: ApiGround) -> None:
    job_id = ground.job()
    ground.client.act(job_id, "cancel")
    ground.client.remove("job_delete", job_id, lambda: ground.graft.delete_job(job_id))


def dataset_delete(ground: ApiGround) -> None:
    dataset_id = ground.dataset()
    ground.client.remove(
        "dataset_delete", dataset_id, lambda: ground.graft.delete_dataset(dataset_id)
    )


def alias_put(ground: ApiGround) -> None:
    name = ground.version(2)
    ground.client.wish("alias", name, lambda: ground.graft.set_alias(name, "stable", 1))


def alias_delete(ground: ApiGround) -> None:
    name = ground.version(2)
    ground.graft.set_alias(name, "stable", 1)
    ground.client.remove("alias", name, lambda: ground.graft.remove_alias(name, "stable"))


def version_delete(ground: ApiGround) -> None:
    name = ground.version(2)
    path = f"/v1/models/{name}/versions/1"
    ground.client.remove("version", name, lambda: _delete(ground, path))


def _delete(ground: ApiGround, path: str) -> None:
    ground.graft._call("DELETE", path)


def model_delete(ground: ApiGround) -> None:
    name = ground.version()
    ground.client.remove("model", name, lambda: ground.graft.delete_model(name))


def export(ground: ApiGround) -> None:
    name = ground.version()
    ground.client.wish("export", name, lambda: ground.graft.export(name, 1))


def download(ground: ApiGround) -> None:
    ground.client.wish("download", "w", lambda: ground.graft.download_weights("squeezenet1_1"))


_FILE_STAGES = ("before_fsync", "before_rename", "after_rename")
_ROW_STAGES = ("before_tx", "in_tx", "after_commit")


def _rows(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{stage}" for name in names for stage in _ROW_STAGES)


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{stage}" for name in names for stage in _FILE_STAGES)


#: Each operation and the points that it passes.
OPERATIONS: dict[Callable[[ApiGround], None], tuple[str, ...]] = {
    upload: ("upload.chunk", *_files("blob"), *_rows("upload")),
    upload_in_parts: (
        "upload_parts.chunk",
        *_files("upload_parts.announced", "upload_parts.outcome"),
    ),
    submit: _rows("submit"),
    cancel: _rows("cancel"),
    pause: _rows("pause"),
    resume: _rows("resume"),
    retry: _rows("retry"),
    job_delete: _rows("job_delete"),
    dataset_delete: _rows("dataset_delete"),
    alias_put: _rows("alias_put"),
    alias_delete: _rows("alias_delete"),
    version_delete: _rows("version_delete"),
    model_delete: _rows("model_delete"),
    export: _rows("export"),
    download: _rows("download"),
}
