"""Fine-tunes as fastai's documentation does; run by `finetune_vs_fastai` in its environment.

    python fastai_child.py OPTIONS.json

Prints one line of JSON. Imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import fastai
import torch
import torchvision
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    imagenet_stats,
    set_seed,
    vision_learner,
)
from torch import nn


def main(options: dict[str, Any]) -> None:
    """Load the images, fine-tune, validate; time all three together, behind the imports."""
    torch.set_num_threads(options["threads"])
    set_seed(options["seed"])
    started = time.monotonic()
    loaders = ImageDataLoaders.from_folder(
        Path(options["images"]),
        train="train",
        valid="val",
        item_tfms=Resize(224),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        bs=options["batch_size"],
        num_workers=options["workers"],
        device=torch.device(options["device"]),
    )
    # The values are loaded by `arch`: `pretrained` would download them, and freezing, the one
    # thing else that it does, is done by `fine_tune` itself.
    learner = vision_learner(loaders, arch(options), pretrained=False, metrics=accuracy)
    if loaders.device.type == "cuda":
        learner.to_fp16()  # mixed precision, as ours
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(options["epochs"])
        loss, correct = learner.validate()
    seconds = round(time.monotonic() - started, 3)
    versions = {m.__name__: m.__version__ for m in (fastai, torch, torchvision)}
    print(
        json.dumps(
            {
                "seconds": seconds,
                "val_accuracy": round(float(correct), 4),
                "val_loss": round(float(loss), 4),
                "images": {"train": len(loaders.train_ds), "val": len(loaders.valid_ds)},
                "versions": {**versions, "python": sys.version.split()[0]},
                "cpus": os.cpu_count(),
            }
        )
    )


def arch(options: dict[str, Any]) -> Any:  # noqa: ANN401 - a builder, as fastai wants it
    """Return a builder of the network with the values of the weights file."""

    def build(pretrained: bool = False) -> nn.Module:
        assert not pretrained
        network = torchvision.models.get_model(options["architecture"], weights=None)
        values = torch.load(options["weights_file"], weights_only=True)
        missing, unexpected = network.load_state_dict(values, strict=False)
        assert not unexpected, unexpected
        assert all(name.startswith("classifier.") for name in missing), missing
        # fastai cuts a network at its last pooling layer; here it is a function of the network's.
        return nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1))

    return build


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
