"""A user of OpenAI's client: upload, fine-tune, follow to the end, cancel another, look around."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import openai

DEADLINE_SECONDS = 120


def main(url: str, archive: Path) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    file = client.files.create(file=archive, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        training_file=file.id,
        model="squeezenet1_1",
        suffix="openai-insects",
        seed=3,
        metadata={"team": "insects"},
    )
    messages = follow(client, job.id)
    ended = client.fine_tuning.jobs.retrieve(job.id)
    said: dict[str, Any] = {
        "file": file.to_dict(),
        "processed": client.files.wait_for_processing(file.id).to_dict(),
        "files": [item.id for item in client.files.list(limit=1)],
        "created": job.to_dict(),
        "ended": ended.to_dict(),
        "messages": messages,
        "events_in_pages": [e.id for e in client.fine_tuning.jobs.list_events(job.id, limit=3)],
        "events_at_once": [e.id for e in client.fine_tuning.jobs.list_events(job.id, limit=200)],
        "checkpoints": [c.to_dict() for c in client.fine_tuning.jobs.checkpoints.list(job.id)],
        "cancelled": cancel_another(client, file.id).to_dict(),
        "jobs": [item.id for item in client.fine_tuning.jobs.list(limit=1)],
        "models": [item.id for item in client.models.list()],
        "model": client.models.retrieve(str(ended.fine_tuned_model)).to_dict(),
        "content_bytes": len(client.files.content(file.id).read()),
    }
    print(json.dumps(said))


def follow(client: openai.OpenAI, job_id: str) -> list[str]:
    """Return the messages of a job's log, oldest first, read while it grows."""
    seen: dict[str, str] = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        status = client.fine_tuning.jobs.retrieve(job_id).status
        fresh = [e for e in client.fine_tuning.jobs.list_events(job_id) if e.id not in seen]
        seen |= {event.id: event.message for event in reversed(fresh)}
        if status in ("succeeded", "failed", "cancelled"):
            return list(seen.values())
        time.sleep(0.2)
    raise TimeoutError(job_id)


def cancel_another(client: openai.OpenAI, file_id: str) -> openai.types.fine_tuning.FineTuningJob:
    """Start a job that takes minutes, and stop it while it runs."""
    job = client.fine_tuning.jobs.create(
        training_file=file_id,
        model="squeezenet1_1",
        suffix="never",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 500}}},
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while client.fine_tuning.jobs.retrieve(job.id).status != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return client.fine_tuning.jobs.cancel(job.id)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
