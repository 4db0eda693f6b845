"""A user of OpenAI's client: an archive in parts, pause and resume, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

PART_BYTES = 8 << 20


def main(url: str, archive: Path) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    jobs = client.fine_tuning.jobs
    content = archive.read_bytes()
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="in-parts.zip",
        bytes=len(content),
        mime_type="application/zip",
        purpose="fine-tune",
        part_size=PART_BYTES,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )
    assert upload.file is not None
    file_id = upload.file.id
    job = jobs.create(
        training_file=file_id,
        model="squeezenet1_1",
        hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 0.5},
    )
    paused = jobs.pause(job.id)
    resumed = jobs.resume(job.id) if paused.status == "paused" else None
    given_up = client.uploads.create(
        bytes=100, filename="a.zip", mime_type="application/zip", purpose="fine-tune"
    )
    said: dict[str, Any] = {
        "upload": upload.to_dict(),
        "file": client.files.wait_for_processing(file_id).to_dict(),
        "paused": paused.to_dict(),
        "resumed": None if resumed is None else resumed.to_dict(),
        "cancelled_job": jobs.cancel(job.id).to_dict(),
        "cancelled_upload": client.uploads.cancel(given_up.id).to_dict(),
        "refused": {
            "no file": refused(lambda: jobs.create(training_file="ds_0", model="squeezenet1_1")),
            "no backbone": refused(lambda: jobs.create(training_file=file_id, model="gpt-4o-mini")),
            "validation file": refused(
                lambda: jobs.create(
                    training_file=file_id, model="squeezenet1_1", validation_file=file_id
                )
            ),
            "method": refused(
                lambda: jobs.create(
                    training_file=file_id, model="squeezenet1_1", method={"type": "dpo"}
                )
            ),
            "no job": refused(lambda: jobs.retrieve("job_0")),
            "no model": refused(lambda: client.models.retrieve("nothing")),
            "no archive": refused(
                lambda: client.files.create(file=("x.jsonl", b"{}\n"), purpose="fine-tune")
            ),
            "purpose": refused(
                lambda: client.files.create(file=("x.zip", b"PK"), purpose="assistants")
            ),
            "part of a cancelled upload": refused(
                lambda: client.uploads.parts.create(given_up.id, data=b"x")
            ),
        },
        "deleted_model": client.models.delete("copied").to_dict(),
        "deleted": client.files.delete(file_id).to_dict(),
    }
    print(json.dumps(said))


def refused(call: Callable[[], object]) -> dict[str, Any]:
    """Return how the client tells the error of a call."""
    try:
        call()
    except openai.APIStatusError as error:
        kind = type(error).__name__
        told = {"code": error.code, "param": error.param, "type": error.type}
        return {"kind": kind, "message": error.message, **told}
    raise AssertionError("it was accepted")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
