"""Which slot of a worker runs which jobs, and which kind of child each of them gets."""

from __future__ import annotations

from jobs.executors.protocol import AttemptKind

#: What a slot of each kind may run: data and downloads never wait for a training.
SLOT_KINDS = {
    "train": ("fine_tune", "race", "evaluate", "batch_predict"),
    "data": ("ingest",),
    "weights": ("download",),
    "engine": ("engine",),
    "export": ("export",),
}
CHILD_KINDS: dict[str, AttemptKind] = {
    "fine_tune": "train",
    "race": "train",
    "evaluate": "train",
    "batch_predict": "train",
    "engine": "train",
    "export": "train",
    "ingest": "ingest",
    "download": "download",
}
