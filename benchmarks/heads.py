"""What the heads of one batch cost: together, as serving applies them, against a loop of modules.

    python benchmarks/heads.py [--json PATH]

The loop is what a server does that gives each model its own `torch.nn.Linear`, softmax and check.
Both work on the same features, by turns in one process, with as many threads as the machine has
cores; familiarity (unknown images) included where it says so. Medians of wall time.

Prints microseconds and ratios to the loop, and writes them as JSON. Needs torch and numpy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_REPOSITORY))

import numpy as np  # noqa: E402 - after the path
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models_cache.answers import outputs_of  # noqa: E402
from models_cache.artifacts import Artifact, ArtifactFacts  # noqa: E402
from models_cache.devices import keep_array_products_to_one_thread  # noqa: E402
from models_cache.novelty import AXES, Familiarity, judge  # noqa: E402
from models_cache.preprocessing import Preprocessing  # noqa: E402
from models_cache.served_models import BackboneKey, LoadedHead  # noqa: E402

_WIDTH = 1280  # features of mobilenet_v2
_BATCH = 16
_ROUNDS = 60


@dataclass(frozen=True)
class Case:
    """Heads of one batch: how many, their classes by turns, and whether they judge familiarity."""

    name: str
    heads: int
    classes: tuple[int, ...]
    familiar: bool = False


CASES = (
    Case("1 head of 2 classes", 1, (2,)),
    Case("16 heads of 2 classes", 16, (2,)),
    Case("16 heads of 2 classes, familiarity", 16, (2,), familiar=True),
    Case("1 head of 1,000 classes", 1, (1000,)),
    Case("4 heads of 1,000 classes", 4, (1000,)),
    Case("16 heads of 2, 10 and 1,000 classes", 16, (2, 10, 1000)),
)


def main() -> None:
    """Time every case, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the report goes, besides the screen")
    options = parser.parse_args()
    keep_array_products_to_one_thread()  # as the inference process does
    report = {"batch": _BATCH, "cases": {case.name: measured(case) for case in CASES}}
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def measured(case: Case) -> dict[str, float]:
    """Return microseconds of both ways and their ratio; fail if they disagree."""
    heads = [drawn_head(seed, case) for seed in range(case.heads)]
    rows = sorted(range(_BATCH), key=lambda row: row % case.heads)
    each = [heads[row % case.heads] for row in rows]
    features = torch.randn(_BATCH, _WIDTH, generator=torch.Generator().manual_seed(0))
    modules = {id(head): linear(head) for head in heads}
    features_array = features.numpy()

    def together() -> list[Any]:
        return list(outputs_of(each, features_array))

    def loop() -> list[Tensor]:
        return looped(each, modules, features)

    for one, other in zip(together(), loop(), strict=True):
        np.testing.assert_allclose(one.scores, other.numpy(), atol=1e-5)
    wall = {"together": [0.0] * _ROUNDS, "loop": [0.0] * _ROUNDS}
    ways: dict[str, Callable[[], list[Any]]] = {"together": together, "loop": loop}
    for turn in range(_ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            wall[name][turn] = time.perf_counter() - started
    together_us, loop_us = (round(statistics.median(seconds) * 1e6, 1) for seconds in wall.values())
    return {
        "together_us": together_us,
        "loop_us": loop_us,
        "ratio": round(together_us / loop_us, 3),
    }


@torch.inference_mode()
def looped(each: list[LoadedHead], modules: dict[int, nn.Linear], features: Tensor) -> list[Tensor]:
    """Return scores by one module after the other, each on the rows of its head."""
    scores: list[Tensor] = []
    start = 0
    for end in range(1, len(each) + 1):
        if end < len(each) and each[end] is each[start]:
            continue
        own = features[start:end]
        logits = modules[id(each[start])](own) / 1.0
        assert logits.isfinite().all()
        scores += logits.softmax(dim=1)
        familiarity = each[start].familiarity
        if familiarity is not None:
            judge([familiarity] * len(own), own.numpy())
        start = end
    return scores


def drawn_head(seed: int, case: Case) -> LoadedHead:
    """Draw a head; no file is involved."""
    rng = np.random.default_rng(seed)
    count = case.classes[seed % len(case.classes)]
    facts = ArtifactFacts(
        task="classification",
        architecture="mobilenet_v2",
        kind="head",
        weights={"sha256": "0" * 64},
        preprocessing=Preprocessing(),
        classes=tuple(f"class {number}" for number in range(count)),
        feature_width=_WIDTH,
    )
    artifact = Artifact(f"{seed:064x}", facts, {})
    familiarity = None
    if case.familiar:
        axes = np.linalg.qr(rng.normal(size=(_WIDTH, AXES)))[0].astype(np.float16)
        familiarity = Familiarity(
            rng.normal(0, 0.01, _WIDTH).astype(np.float32),
            axes,
            np.sort(rng.random(200, dtype=np.float32)),
        )
    return LoadedHead(
        artifact,
        BackboneKey(*artifact.backbone_key, artifact=artifact),
        rng.normal(0, 0.02, (count, _WIDTH)).astype(np.float32),
        np.zeros(count, np.float32),
        familiarity,
    )


def linear(head: LoadedHead) -> nn.Linear:
    """Return a head as a module."""
    module = nn.Linear(_WIDTH, len(head.bias))
    module.load_state_dict(
        {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    )
    return module.eval()


if __name__ == "__main__":
    main()
