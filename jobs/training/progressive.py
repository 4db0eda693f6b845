"""Recipe `auto`: the head is published first, the network replaces it only if it is better.

Better means beyond noise: the paired bootstrap of the loss on the held-out images
(`jobs.training.bootstrap`). The test split has no say; docs/decisions/0006 has the reasons.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.training.bootstrap import Losses, compare
from jobs.training.outcome import Ready, Trained, publish
from jobs.training.sources import SEEN
from models_cache import faults

Published = dict[str, Any]  # `line`, as said to the worker, and `losses` of the held-out images


def publish_head(ready: Ready, head: Trained) -> Published:
    """Phase `publish` of the first candidate; the attempt goes on.

    Returns:
        What a checkpoint keeps of it, JSON-ready.
    """
    line = publish(ready, head)
    ready.place.progress.candidate(line)
    faults.reach("train.after_candidate")
    return {"line": line, "losses": held_out_losses(ready, head).tolist()}


def repeat_head(ready: Ready, head: Published) -> None:
    """Say again what an earlier attempt said: its worker may have died before it listened."""
    ready.place.progress.candidate(head["line"])


def conclude(ready: Ready, head: Published, network: Trained) -> dict[str, Any]:
    """Phase `publish` of the second candidate: return the result line with its `promotion`."""
    if network.facts["best_step"] == 0:
        reason = "the time was over before the network had learned anything: the head stays"
        verdict = {"better": False, "reason": reason, "metrics": head["line"]["metrics"]}
        return {"promotion": verdict}
    line = publish(ready, network)
    verdict = judge(
        np.array(head["losses"]), held_out_losses(ready, network), ready.data.held_out_name
    )
    metrics = line["metrics"] if verdict["better"] else head["line"]["metrics"]
    return {**line, "promotion": {**verdict, "metrics": metrics}}


def judge(head: Losses, network: Losses, split: str) -> dict[str, Any]:
    """Return whether the network is better than the head beyond noise, and why.

    Args:
        head: Loss of each held-out image in nats, float64 `[N]`.
        network: The same images in the same order.
        split: Which images these are; `SEEN` ones decide nothing.
    """
    if split == SEEN or not len(head):
        reason = "there are no held-out images to compare on: the head stays"
        return {"better": False, "reason": reason}
    found = compare(head, network)
    figures = (
        f"the loss of the network is lower by {found.gain:+.4f} nats on {found.images} images of "
        f"{split}, with 95 % certainty by {found.gain_at_least:+.4f} or more"
    )
    words = "better beyond noise" if found.is_better else "not better beyond noise: the head stays"
    return {
        "better": found.is_better,
        "reason": f"{words}; {figures}",
        "split": split,
        "comparison": found.as_json(),
    }


def held_out_losses(ready: Ready, trained: Trained) -> Losses:
    """Return the loss of each held-out image in nats, float64 `[N]`; empty where there is none."""
    outputs = trained.outputs.get(ready.data.held_out_name)
    if outputs is None:
        return np.zeros(0)
    targets = ready.targets(ready.data.held_out)
    losses: Losses = ready.task.loss(outputs.logits.double(), targets, 0.0, None).numpy()
    return losses
