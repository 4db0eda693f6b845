"""Networks that were tuned in their last stages share those before, their trunk.

One trunk is in memory for all of them, and one pass of it serves a batch of their images; each
goes on through its own last stages. What was left as it was is found by comparing tensors with
the pretrained file: an artifact need not say so, and cannot say it wrongly.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from torch import nn

from models_cache.artifacts import Artifact
from models_cache.backbone_weights import verified_weights
from models_cache.backbones import tuned_names
from models_cache.devices import keep_freed_memory
from models_cache.engines import Engine
from models_cache.errors import GraftError
from models_cache.loaded import Occupancy
from models_cache.served_models import BackboneKey, Trunk


class Trunks:
    """The trunks in memory: each for as long as a loaded backbone needs it. Thread-safe.

    They come on top of the bound on loaded backbones, which counts what each has of its own.
    """

    def __init__(self) -> None:
        self._trunks: WeakValueDictionary[BackboneKey, Trunk] = WeakValueDictionary()
        self._loads = 0
        self._load_seconds = 0.0
        self._making = threading.Lock()

    def shared(self, key: BackboneKey, make: Callable[[], Engine]) -> Trunk:
        """Return the trunk of a key; one that somebody has, or else a new one."""
        with self._making:
            trunk = self._trunks.get(key)
            if trunk is None:
                keep_freed_memory()  # only here: all others grow by it, and are no faster
                started = time.monotonic()
                trunk = self._trunks[key] = Trunk(key, make())
                self._loads += 1
                self._load_seconds += time.monotonic() - started
            return trunk

    def occupancy(self) -> Occupancy:
        """Return what is loaded now and what was done so far."""
        loaded = list(self._trunks.values())
        loaded_bytes = sum(trunk.engine.size_bytes for trunk in loaded)
        evictions = self._loads - len(loaded)
        return Occupancy(len(loaded), loaded_bytes, self._loads, self._load_seconds, evictions)


def tuned_tensors(backbone: nn.Module, artifact: Artifact, weights_folder: Path) -> set[str] | None:
    """Return the names of the backbone's tensors that training changed; None if nobody can tell.

    Args:
        backbone: Of an artifact of kind `whole`, on the CPU.
        artifact: What it was loaded from.
        weights_folder: Where pretrained files are; without the one it started from, the network
            is served whole.
    """
    facts = artifact.facts
    if facts.weights is None:
        return None
    try:
        path = verified_weights(weights_folder, facts.weights)
        has_head = bool(facts.weights.get("has_head", True))
        return tuned_names(backbone, facts.architecture, path, has_head)
    except (GraftError, KeyError):  # an imported artifact may name anything
        return None
