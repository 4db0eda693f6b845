"""How long tests of faults are: a short form by default, all of it in `make soak`.

`GRAFT_TEST_SOAK=1` asks for all. Figures for the scorecard go to `build/scorecard/`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from typing import TypeVar

from tests.faults.call_sites import REPOSITORY

_Item = TypeVar("_Item")

SOAK = os.environ.get("GRAFT_TEST_SOAK") == "1"
#: Chooses the sample of a short run; printed by tests that use it.
SEED = int(os.environ.get("GRAFT_TEST_SEED", str(random.randrange(10**6))))  # noqa: S311
FIGURES = REPOSITORY / "build" / "scorecard"


def sample(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return all items in a soak, else `count` of them that the seed chooses, in their order."""
    if SOAK or count >= len(items):
        return list(items)
    chosen = set(random.Random(SEED).sample(range(len(items)), count))  # noqa: S311
    return [item for index, item in enumerate(items) if index in chosen]


def write_figure(name: str, value: float | str, target: float | str, *, ok: bool) -> None:
    """Write a figure for the scorecard: `{"name", "value", "target", "ok"}`."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "value": value, "target": target, "ok": ok}
    (FIGURES / f"{name}.json").write_text(json.dumps(record) + "\n")
