"""A child of the fork server that computes on a CUDA device; imports what a training imports."""

from __future__ import annotations

from pathlib import Path

import torch

import jobs.run  # noqa: F401 - what the fork server imports for trainings


def main(answer: str) -> None:
    """Multiply on the card, and write its name where the path of a spec would be."""
    values = torch.eye(64, device="cuda:0")
    assert torch.equal(values @ values, values)
    Path(answer).write_text(torch.cuda.get_device_name(0))
