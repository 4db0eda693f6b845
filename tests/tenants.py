"""A project with one of everything, as rows and blobs: what another project must not see."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, fields
from pathlib import Path

from sqlalchemy import Connection, update

from jobs.datasets.manifest import LabelledImage, build_manifest
from jobs.exports import rows as exports
from jobs.keys import Limits, Scope, new_key, sha256_of_key
from jobs.store import datasets, events, feedback, jobs, keys, models, tables, webhooks
from jobs.store.database import utc_now
from jobs.store.feedback import NewFeedback
from jobs.store.jobs import NewJob
from jobs.store.keys import NewApiKey
from jobs.store.models import NewVersion
from jobs.store.webhooks import Webhook
from models_cache.blobs import BlobStore
from models_cache.durable import canonical_json
from service import upload_parts
from service.services import new_id
from service.upload_parts import Announced
from service.uploads import Upload
from tests.images import shape_bytes

_SEEDS = itertools.count()  # no two data sets share a picture, whose id follows from its bytes


@dataclass(frozen=True)
class Things:
    """The ids of what a project has."""

    dataset: str
    image: str
    job: str
    model: str
    export: str
    feedback: str
    upload: str
    part: str
    key: str
    delivery: str
    audit: str = f"aud_{'9' * 6}_{'9' * 6}"  # the first entry comes with the first call

    def values(self) -> list[str]:
        """Return all of them."""
        return [getattr(self, field.name) for field in fields(self)]


#: As long and of the same letters as real ones.
ABSENT = Things(
    dataset=f"ds_{'0' * 32}",
    image="0" * 16,
    job=f"job_{'0' * 32}",
    model="absent",
    export=f"job_{'1' * 32}",
    feedback=f"fb_{'0' * 32}",
    upload=f"upload_{'0' * 32}",
    part=f"part_{'0' * 64}",
    key=f"key_{'0' * 32}",
    delivery=f"msg_{'0' * 32}",
)


def furnish(connection: Connection, data_folder: Path, project: str, model: str) -> Things:
    """Give a project a checked data set, an ended job, a model with all that it may have, ..."""
    blobs = BlobStore(data_folder / "blobs")
    dataset, image = _dataset(connection, blobs, project)
    job = _ended_job(connection, data_folder, project, dataset)
    artifact = blobs.put_bytes(canonical_json({"job": job}))
    new = NewVersion(
        project=project,
        name=model,
        artifact_digest=artifact.sha256,
        files={"README.md": {"sha256": artifact.sha256, "size": artifact.size_bytes}},
        task="classification",
        architecture="squeezenet1_1",
        classes=["a", "b"],
        metrics={},
        evaluation_sha256=artifact.sha256,
        job_id=job,
        dataset_id=dataset,
    )
    version = models.publish(connection, new, promote=True)
    models.set_alias(connection, model, "stable", 1, project=project)
    said = NewFeedback(
        id=new_id("fb"),
        project=project,
        model=model,
        version=1,
        image_sha256=artifact.sha256,
        image_bytes=artifact.size_bytes,
        labels=["a"],
        predicted={"label": "b", "score": 0.5},
    )
    feedback.add(connection, [said])
    new_key_row = NewApiKey(
        id=new_id("key"),
        project=project,
        name="another",
        scope=Scope.READ,
        secret_sha256=sha256_of_key(new_key()),
        limits=Limits(),
    )
    upload, part = _upload(data_folder, project)
    return Things(
        dataset=dataset,
        image=image,
        job=job,
        model=model,
        export=exports.add(connection, version, "onnx").id,
        feedback=said.id,
        upload=upload,
        part=part,
        key=keys.add(connection, new_key_row).id,
        delivery=_delivery(connection, project, job),
    )


def _dataset(connection: Connection, blobs: BlobStore, project: str) -> tuple[str, str]:
    data = shape_bytes("disc", next(_SEEDS))
    blob, name = blobs.put_bytes(data), new_id("ds")
    image = LabelledImage(blob.sha256, len(data), f"{name}.jpg", 48, 40, "train", "a")
    manifest = build_manifest([image], ["a", "b"])
    datasets.add(connection, name, name, (blob.sha256, blob.size_bytes), project=project)
    facts = {
        "manifest_sha256": manifest.store(blobs).sha256,
        "report_sha256": blobs.put_bytes(b"{}").sha256,
        "digest": manifest.digest,
        "task": manifest.task,
        "classes": list(manifest.classes),
        "splits": manifest.counts(),
    }
    datasets.set_ready(connection, name, facts)
    return name, manifest.images[0].id


def _ended_job(connection: Connection, data_folder: Path, project: str, dataset: str) -> str:
    new = NewJob(
        id=new_id("job"),
        project=project,
        type="fine_tune",
        spec={
            "backbone": "squeezenet1_1",
            "weights": "DEFAULT",
            "recipe": "head",
            "parameters": {},
            "model": None,
            "seed": 0,
            "promote": True,
        },
        dataset_id=dataset,
    )
    jobs.accept(connection, new)
    ended = {"status": "failed", "attempt": 1, "finished_at": utc_now()}
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == new.id).values(**ended))
    events.append(connection, new.id, [("log", {"text": f"of {new.id}"})])
    folder = data_folder / "runs" / new.id / "1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    return new.id


def _delivery(connection: Connection, project: str, job: str) -> str:
    """Put a message about a job into the outbox; no worker runs that would send it."""
    url = "https://receiver.example"
    webhook = Webhook(job, project, url, "whsec_x", f"{url}:443")
    webhooks.register(connection, webhook)
    webhooks.put(connection, webhook, "job.failed", "{}")
    return webhooks.of_job(connection, job)[0].id


def _upload(data_folder: Path, project: str) -> tuple[str, str]:
    announced = Announced(project, "photos.zip", 4, int(time.time()))
    upload = upload_parts.begin(data_folder / "uploads", new_id("upload"), announced)
    received = data_folder / "uploads" / f"{upload.id}.tmp"
    received.write_bytes(project[:4].ljust(4).encode())
    sha256 = BlobStore(upload.folder).put_file(received).sha256
    return upload.id, upload_parts.add_part(upload, Upload(received, sha256, 4, None))
