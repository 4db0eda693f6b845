"""What a child is told: the spec file of an attempt, made of the job's row and the machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models_cache import durable
from models_cache.egress_policy import PUBLIC_ONLY, EgressPolicy

if TYPE_CHECKING:  # settings need `Machine`, and every process settings: without the database
    from jobs.store.datasets import Dataset
    from jobs.store.jobs import Job
    from jobs.trail import Trail

FILE_NAME = "spec.json"
_OF_AN_INGEST = ("val_fraction", "corrections", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What every attempt on this machine shares; values that settings give.

    Args:
        data_folder: Root of all state.
        weights_sources: Folders or base URLs tried before the official one.
        weights_catalogues: JSON files that add weights.
        offline: Never open a connection for weights.
        egress: Where connections may lead.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        gpus: Names of those that torch finds, in its order; trainings side by side get one each.
        train_threads: CPU threads of a training child.
        ingest_limits: Overrides of `IngestLimits` fields.
        code_version: Version of this program, recorded in artifacts.
        faults: Plan of named points to fail at, for tests.
        log_format: `text` or `json`.
        log_level: Least severe line.
        traces_url: Where spans are collected; empty: nowhere.
    """

    data_folder: Path
    weights_sources: tuple[str, ...] = ()
    weights_catalogues: tuple[str, ...] = ()
    offline: bool = False
    egress: EgressPolicy = PUBLIC_ONLY
    device: str = "auto"
    gpus: tuple[str, ...] = ()
    train_threads: int = 1
    ingest_limits: dict[str, Any] = field(default_factory=dict)
    code_version: str = "0"
    faults: str = ""
    log_format: str = "text"
    log_level: str = "info"
    traces_url: str = ""

    @property
    def usable_gpus(self) -> tuple[str, ...]:
        """The GPUs that trainings use: none, the one of `device`, or all."""
        if self.device == "cpu":
            return ()
        if self.device == "auto":
            return self.gpus
        number = int(self.device.partition(":")[2] or 0)
        return self.gpus[number : number + 1]

    def at_place(self, place: int) -> Machine:
        """Return this machine as the training in a slot's `place` sees it: with its own GPU."""
        if self.device != "auto" or len(self.gpus) < 2:
            return self
        return replace(self, device=f"cuda:{place % len(self.gpus)}")

    def gpu_at(self, place: int) -> str | None:
        """Return the name of the GPU of a slot's `place`; None where a CPU trains."""
        usable = self.usable_gpus
        return usable[place % len(usable)] if usable else None

    def run_folder(self, job_id: str) -> Path:
        """Return the folder of a job: its attempts and checkpoints."""
        return self.data_folder / "runs" / job_id

    def attempt_folder(self, job: Job) -> Path:
        """Return the folder of a job's current attempt."""
        return self.run_folder(job.id) / str(job.attempt)


def remove_scratch(attempt_folder: Path) -> None:
    """Remove what a killed ingest left: unpacked files that no row points to."""
    shutil.rmtree(attempt_folder / "ingest", ignore_errors=True)


def write_spec(
    machine: Machine, job: Job, trail: Trail, dataset: Dataset | None, parent: Dataset | None
) -> Path:
    """Write the spec of a job's current attempt and return its path.

    Args:
        machine: The machine it runs on.
        job: The claimed job.
        trail: Of the attempt.
        dataset: The dataset it works on, if any.
        parent: For an ingest: the version whose images are kept.
    """
    folder = machine.attempt_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {
        "kind": job.type,
        "job_id": job.id,
        "attempt": job.attempt,
        "attempt_folder": str(folder),
        "run_folder": str(machine.run_folder(job.id)),
        "data_folder": str(machine.data_folder),
        "parent_pid": os.getpid(),
        "faults": machine.faults,
        "faults_folder": str(machine.data_folder / "run" / "faults"),
        "trail": {
            **trail.for_child(),
            "log_format": machine.log_format,
            "log_level": machine.log_level,
            "traces_url": machine.traces_url,
            "version": machine.code_version,
        },
    }
    particular = {
        "ingest": _ingest,
        "download": _download,
        "fine_tune": _fine_tune,
        "race": _race,
        "evaluate": _evaluate,
        "batch_predict": _batch_predict,
        "engine": _engine,
        "export": _export,
    }[job.type](machine, job, dataset, parent)
    path = folder / FILE_NAME
    durable.write_bytes(path, durable.canonical_json({**common, **particular}), point="spec")
    return path


def _weights(machine: Machine) -> dict[str, Any]:
    return {
        "weights_sources": list(machine.weights_sources),
        "weights_catalogues": list(machine.weights_catalogues),
        "offline": machine.offline,
        "egress": machine.egress.as_json(),
    }


def _ingest(
    machine: Machine, job: Job, dataset: Dataset | None, parent: Dataset | None
) -> dict[str, Any]:
    assert dataset is not None, "an ingest job has a dataset"
    return {
        "archive_sha256": dataset.archive_sha256,
        "parent_manifest_sha256": None if parent is None else parent.manifest_sha256,
        "limits": machine.ingest_limits,
        "resize_px": 256,
        "interpolation": "bilinear",
        **{key: job.spec[key] for key in _OF_AN_INGEST if key in job.spec},
    }


def _download(
    machine: Machine, job: Job, _dataset: Dataset | None, _parent: Dataset | None
) -> dict[str, Any]:
    chosen = {key: job.spec[key] for key in ("architecture", "weights")}
    return {**chosen, **_weights(machine)}


def _fine_tune(
    machine: Machine, job: Job, dataset: Dataset | None, _parent: Dataset | None
) -> dict[str, Any]:
    assert dataset is not None, "a fine-tuning job has a dataset"
    return {
        "dataset": {
            "id": dataset.id,
            "manifest_sha256": dataset.manifest_sha256,
            "digest": dataset.digest,
            "report_sha256": dataset.report_sha256,
        },
        "architecture": job.spec["backbone"],
        "weights": job.spec["weights"],
        "recipe": job.spec["recipe"],
        "parameters": job.spec["parameters"],
        "seed": job.spec["seed"],
        "block_on": job.spec.get("block_on", "never"),  # jobs of an older version have none
        "time_limit_seconds": job.spec["time_limit_seconds"],
        "device": machine.device,
        "threads": _threads(machine, job),
        "reproduce": job.spec.get("reproduce"),
        "lineage": {
            "job_id": job.id,
            "dataset_id": dataset.id,
            "dataset_digest": dataset.digest,
            "model": job.model,
            "code_version": machine.code_version,
        },
        **_weights(machine),
    }


def _threads(machine: Machine, job: Job) -> int:
    """Return the CPU threads: the recorded ones for a reproduction, with others sums differ."""
    if "reproduce" not in job.spec:
        return machine.train_threads
    return int(job.spec["reproduce"]["receipt"]["numerics"]["threads"])


def _engine(
    machine: Machine, job: Job, _dataset: Dataset | None, _parent: Dataset | None
) -> dict[str, Any]:
    threads = {"threads": machine.train_threads, "time_limit_seconds": None}
    return {**job.spec, **threads}


def _evaluate(
    machine: Machine, job: Job, dataset: Dataset | None, parent: Dataset | None
) -> dict[str, Any]:
    asked = _batch_predict(machine, job, dataset, parent)
    return {**asked, "learned_from": job.spec["learned_from"]}


def _batch_predict(
    machine: Machine, job: Job, dataset: Dataset | None, _parent: Dataset | None
) -> dict[str, Any]:
    assert dataset is not None, "what is predicted is a dataset"
    return {
        "manifest_sha256": dataset.manifest_sha256,
        "artifact": job.spec["artifact"],
        "parameters": job.spec["parameters"],
        "time_limit_seconds": job.spec["time_limit_seconds"],
        "device": machine.device,
        "threads": machine.train_threads,
        "limits": machine.ingest_limits,
    }


def _export(
    machine: Machine, job: Job, _dataset: Dataset | None, _parent: Dataset | None
) -> dict[str, Any]:
    return {**job.spec, "threads": machine.train_threads}


def _race(
    machine: Machine, job: Job, dataset: Dataset | None, parent: Dataset | None
) -> dict[str, Any]:
    """Tell of an attempt with recipe `head` on the first entrant, and of all of them."""
    asked = job.spec["parameters"]
    entrants = job.spec["entrants"]
    first = {
        "backbone": entrants[0]["architecture"],
        "weights": entrants[0]["weights"],
        "recipe": "head",
        "parameters": {name: asked[name] for name in ("folds", "batch_size")},
    }
    common = _fine_tune(machine, replace(job, spec={**job.spec, **first}), dataset, parent)
    chosen = {name: asked[name] for name in ("rank_by", "learning_curve")}
    return {**common, **chosen, "entrants": entrants}
