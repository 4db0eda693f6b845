"""What a served model answers to the photographs it was judged on."""

from __future__ import annotations

import zipfile
from pathlib import Path

from service.client import Graft, Json

_AT_ONCE = 32  # images of one request


def right_answers(graft: Graft, archive_path: Path, dataset: Json, reference: str) -> int:
    """Predict the original bytes of every val photograph over HTTP; return how many are right.

    Args:
        graft: A client.
        archive_path: The zip that the dataset was uploaded from.
        dataset: Whose val split is asked about.
        reference: `name`, `name@alias` or `name@version` of the model.
    """
    held_out = graft.images(dataset["id"], split="val")
    right = 0
    with zipfile.ZipFile(archive_path) as archive:
        for start in range(0, len(held_out), _AT_ONCE):
            batch = held_out[start : start + _AT_ONCE]
            answer = graft.predict(reference, *[archive.read(item["path"]) for item in batch])
            for item, prediction in zip(batch, answer["predictions"], strict=True):
                right += prediction["label"] == item["label"]
    return right
