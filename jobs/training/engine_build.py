"""A job of its own: build a faster engine of a backbone, for the jobs that come after.

Queued when a training is published, so that no job waits for it; hidden from lists, in a slot of
its own and nicer than trainings. What came of it is kept, so that it is done once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from jobs.progress import ProgressWriter
from models_cache.backbone_weights import verified_weights
from models_cache.backbones import build_backbone
from models_cache.engine_store import EngineKey, EngineStore, build_engine, engine_name
from models_cache.preprocessing import Preprocessing

_NICE = 9  # on top of a training's: 19 is the lowest priority there is


def build(spec_path: Path, progress: ProgressWriter) -> dict[str, Any]:
    """Build, check and time the engine that a spec names, keep it, and return the result line.

    Raises:
        WeightsError: The weights are gone or not what they were.
    """
    os.nice(_NICE)
    spec = json.loads(spec_path.read_bytes())
    progress.phase("engine")
    torch.set_num_threads(max(1, spec["threads"]))
    data_folder = Path(spec["data_folder"])
    preprocessing = Preprocessing.from_json(spec["preprocessing"])
    weights = spec["weights"]
    key = EngineKey(spec["architecture"], weights["sha256"], preprocessing.digest)
    store = EngineStore(data_folder / "cache" / "engines")
    if store.is_wanted(key):
        path = verified_weights(data_folder / "weights", weights)
        backbone = build_backbone(
            spec["architecture"], weights_path=path, has_head=weights["has_head"]
        )
        store.keep(key, *build_engine(backbone, preprocessing))
    record = store.record(key)
    if record is None:  # the runtime was uninstalled meanwhile
        return {"engine": engine_name(), "usable": False, "reason": "there is no runtime"}
    facts = {"usable": record.usable, "reason": record.reason, "seconds": record.seconds}
    return {"engine": engine_name(), **facts}
