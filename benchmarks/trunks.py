"""Networks tuned in their last stages: sharing the stages before against having all of their own.

    python benchmarks/trunks.py --weights WEIGHTS_FOLDER [--models 8] [--json PATH]

Artifacts of mobilenet_v2 are made whose last stages differ (their values are disturbed: speed does
not depend on them), served by the same code in one process by turns: with the pretrained file they
share a trunk, without it each is served whole. A batch has 16 images of all the models. Medians of
wall time. Prints ratios and writes them as JSON. Needs torch and the real weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY))

import torch  # noqa: E402 - after the path

from models_cache.answers import QueuedImage  # noqa: E402
from models_cache.artifacts import ArtifactFacts, write_artifact  # noqa: E402
from models_cache.backbones import (  # noqa: E402
    build_classifier,
    feature_width,
    parameter_groups_in_depth_order,
)
from models_cache.blobs import BlobStore  # noqa: E402
from models_cache.classifiers import (  # noqa: E402
    golden_images,
    golden_outputs,
    tensors_to_publish,
)
from models_cache.decode import ImageLimits  # noqa: E402
from models_cache.devices import keep_array_products_to_one_thread  # noqa: E402
from models_cache.predictor import Predictor  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402
from models_cache.served_models import Model  # noqa: E402

_ARCHITECTURE = "mobilenet_v2"
_BATCH = 16
_ROUNDS = 20
_PREPROCESSING = Preprocessing(resize_px=256, crop_px=224)


def main() -> None:
    """Time both ways for several depths, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with catalog.json")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where the report goes, besides the screen")
    options = parser.parse_args()
    keep_array_products_to_one_thread()  # as the inference process does
    report = {
        "models": options.models,
        "batch": _BATCH,
        "tuned_stages": {n: measured(options.weights, options.models, n) for n in (1, 2, 4, 8)},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def measured(weights: Path, models: int, stages: int) -> dict[str, float]:
    """Return the ratios of sharing to not sharing, for networks of which some stages are tuned."""
    with tempfile.TemporaryDirectory() as name:
        folder, without = Path(name) / "with", Path(name) / "without"
        digests = made(folder, weights, models, stages)
        shutil.copytree(folder / "blobs", without / "blobs")
        (without / "weights").mkdir()
        shared, whole = (_predictor(place) for place in (folder, without))
        served = [[p.pin(digest).value for digest in digests] for p in (shared, whole)]
        assert served[0][0].backbone.trunk is not None
        assert served[1][0].backbone.trunk is None
        seconds: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for way, predictor in enumerate((shared, whole)):
                seconds[way].append(_batch_seconds(predictor, served[way]))
        medians = [statistics.median(times) for times in seconds]
        bytes_of = [p.status()["loaded_bytes"] for p in (shared, whole)]
        return {"time": medians[0] / medians[1], "memory": bytes_of[0] / bytes_of[1]}


def made(folder: Path, weights: Path, models: int, stages: int) -> list[str]:
    """Publish networks whose last stages differ from the pretrained one; return their digests."""
    entry: dict[str, Any] = next(
        entry
        for entry in json.loads((weights / "catalog.json").read_text())["weights"]
        if entry["architecture"] == _ARCHITECTURE
    )
    (folder / "weights").mkdir(parents=True)
    shutil.copy(weights / entry["file"], folder / "weights")
    facts = ArtifactFacts(
        "classification",
        _ARCHITECTURE,
        "whole",
        {"file": entry["file"], "sha256": entry["sha256"], "has_head": entry["head"]},
        _PREPROCESSING,
        ("ant", "bee"),
        feature_width(_ARCHITECTURE),
    )
    digests = []
    for seed in range(models):
        torch.manual_seed(seed)
        model = build_classifier(
            _ARCHITECTURE, 2, weights_path=weights / entry["file"], has_head=entry["head"]
        ).eval()
        with torch.no_grad():
            for group in parameter_groups_in_depth_order(model.backbone)[-stages:]:
                for parameter in group:
                    parameter.mul_(1 + 0.01 * torch.rand(()))
        golden = golden_outputs(model, _PREPROCESSING)
        tensors = tensors_to_publish(model, "whole")
        digests.append(write_artifact(BlobStore(folder / "blobs"), facts, tensors, golden).digest)
    return digests


def _predictor(folder: Path) -> Predictor:
    return Predictor(folder, torch.device("cpu"), 4 << 30, ImageLimits())


def _batch_seconds(predictor: Predictor, models: Sequence[Model]) -> float:
    """Answer one image after the other of all models, in as few passes as their keys allow."""
    image = golden_images(_PREPROCESSING.crop_px)[0]
    batches: dict[object, list[QueuedImage]] = {}
    for number in range(_BATCH):
        model = models[number % len(models)]
        batches.setdefault(model.backbone_key, []).append(QueuedImage(model, image))
    started = time.monotonic()
    for batch in batches.values():
        predictor.forward(batch[0].model.backbone_key, batch)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
