"""Recipe `auto`: the head is published first, the network replaces it only if it is better.

Better means beyond noise: the paired bootstrap of the loss on the held-out images
(`jobs.training.bootstrap`), where no image counts for more than a little worse than a guess. The
test split has no say; docs/decisions/0006 has the reasons.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.training.bootstrap import Losses, compare
from jobs.training.outcome import Ready, Trained, publish
from jobs.training.sources import SEEN
from models_cache import faults

# Nats above the loss of a guess: how sure a wrong answer was is for the temperature to mend, and a
# few such images would decide by themselves.
_WORST_ABOVE_GUESS = 1.0

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
    losses = held_out_losses(ready, network)
    split = ready.data.held_out_name
    verdict = judge(np.array(head["losses"]), losses, split, _guess_loss(ready, network))
    metrics = line["metrics"] if verdict["better"] else head["line"]["metrics"]
    return {**line, "promotion": {**verdict, "metrics": metrics}}


def judge(head: Losses, network: Losses, split: str, guess: float) -> dict[str, Any]:
    """Return whether the network is better than the head beyond noise, and why.

    Args:
        head: Loss of each held-out image in nats, float64 `[N]`.
        network: The same images in the same order.
        split: Which images these are; `SEEN` ones decide nothing.
        guess: Loss in nats of one that knows nothing.
    """
    if split == SEEN or not len(head):
        reason = "there are no held-out images to compare on: the head stays"
        return {"better": False, "reason": reason}
    worst = guess + _WORST_ABOVE_GUESS
    found = compare(np.minimum(head, worst), np.minimum(network, worst))
    figures = (
        f"the loss of the network (at most {worst:.2f} nats for an image) is lower by "
        f"{found.gain:+.4f} nats on {found.images} images of {split}, and by "
        f"{found.gain_at_least:+.4f} or more where noise (95 %) and one unseen bad image are "
        "allowed for"
    )
    words = "better beyond noise" if found.is_better else "not better beyond noise: the head stays"
    return {
        "better": found.is_better,
        "reason": f"{words}; {figures}",
        "split": split,
        "comparison": {**found.as_json(), "loss_at_most": worst},
    }


def held_out_losses(ready: Ready, trained: Trained) -> Losses:
    """Return the loss of each held-out image in nats, float64 `[N]`; empty where there is none."""
    outputs = trained.outputs.get(ready.data.held_out_name)
    if outputs is None:
        return np.zeros(0)
    targets = ready.targets(ready.data.held_out)
    losses: Losses = ready.task.loss(outputs.logits.double(), targets, 0.0, None).numpy()
    return losses


def _guess_loss(ready: Ready, trained: Trained) -> float:
    """Return the loss in nats of equal logits; 0 where nothing is held out."""
    outputs = trained.outputs.get(ready.data.held_out_name)
    if outputs is None:
        return 0.0
    targets = ready.targets(ready.data.held_out)
    return float(ready.task.loss(outputs.logits.double() * 0.0, targets, 0.0, None).mean())
