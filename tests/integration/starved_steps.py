"""Steps of 32 images in a process that has memory for fewer: prints what came of it as JSON."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from jobs.recipes import FinetuneRecipe
from jobs.tasks.classification import Classification
from jobs.training.device import set_up
from jobs.training.optimizer import build_optimizer, prepare_modules
from jobs.training.state import TrainingState
from jobs.training.step import Batch, Learner, compute_gradients, update_weights, within_memory
from models_cache.backbones import build_classifier
from models_cache.errors import GraftError

_IMAGES = 32
_ARCHITECTURE = "mobilenet_v3_small"


def main(spare_bytes: int) -> None:
    """Run two steps with so much memory more than a step of one image has left in use."""
    set_up(torch.device("cpu"), 1)
    torch.manual_seed(0)
    recipe = FinetuneRecipe(epochs=1, tune=99, batch_norm="train", class_weights="none")
    model = build_classifier(_ARCHITECTURE, 2).to(memory_format=torch.channels_last)
    state = TrainingState(model, build_optimizer(model, recipe))
    prepare_modules(model, recipe)
    task = Classification(("a", "b"))
    learner = Learner(
        inputs=lambda pixels: pixels.float().permute(0, 3, 1, 2) / 255,
        logits=model,
        loss=lambda logits, targets: task.loss(logits, targets, 0.0, None),
        probabilities=task.probabilities,
        training_dtype=torch.float32,
    )
    images = torch.randint(0, 256, (_IMAGES, 224, 224, 3), dtype=torch.uint8)
    batch = Batch(images, torch.arange(_IMAGES) % 2, None)
    first = Batch(images[:1], batch.targets[:1], None)
    update_weights(state, 1, compute_gradients(state, first, learner))
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = mapped_pages * resource.getpagesize() + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    warnings: list[str] = []
    code = None
    try:
        for _ in range(2):
            loss = within_memory(
                state, _IMAGES, lambda code, _message: warnings.append(code),
                lambda: compute_gradients(state, batch, learner),
            )  # fmt: skip
            update_weights(state, _IMAGES, loss)
    except GraftError as error:
        code = error.code
    found = {"most_images": state.most_images, "warnings": warnings, "steps": state.step}
    sys.stdout.write(json.dumps({**found, "error": code}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
