"""Checkpoints: what an interrupted attempt goes on from, written so that a reader never sees half.

Tensors first, then the JSON file that names their SHA-256: a checkpoint exists once its JSON
does. The newest valid one wins; a damaged one is passed over for the one before; the last two
valid ones are kept. A checkpoint belongs to one configuration (data, weights, resolved recipe,
versions); those of another are neither kept nor counted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from jobs.training.tensor_stream import write_tensors
from models_cache import durable

FORMAT = 2
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose tensors were found undamaged.

    Args:
        path: Its safetensors file.
        facts: Its JSON: `step`, `epoch`, `threads`, `config`, `recipe`, `best`, ...
    """

    path: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when it was written."""
        return int(self.facts["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name, on the CPU."""
        return dict(load_file(self.path))


class Checkpoints:
    """The checkpoints of one job.

    Args:
        folder: `runs/<job>/checkpoints`; made at the first save.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a checkpoint durably, then drop all but the last two of its configuration.

        Args:
            tensors: State by name.
            facts: JSON-ready, with `step`, and `config` where there are several.

        Raises:
            InsufficientStorage: The disk is full; older checkpoints are untouched.
        """
        path = self._folder / f"step-{facts['step']:08d}.safetensors"
        with durable.writing(path, point="checkpoint") as file:
            sha256 = write_tensors(file, tensors)
        described = {**facts, "format": FORMAT, "sha256": sha256}
        json_data = durable.canonical_json(described)
        durable.write_bytes(path.with_suffix(".json"), json_data, point="checkpoint.json")
        self._prune(path.stem, facts.get("config"))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose bytes are the ones that were written, if any."""
        for described in self._descriptions():
            checkpoint = _valid(described)
            if checkpoint is not None:
                return checkpoint
        return None

    def clear(self) -> None:
        """Delete all checkpoints."""
        self._drop_all_but(set())

    def _descriptions(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.json"), reverse=True)

    def _prune(self, written: str, config: str | None) -> None:
        kept = {written}
        for described in self._descriptions():
            if len(kept) == _KEPT:
                break
            checkpoint = None if described.stem in kept else _valid(described)
            if checkpoint is not None and checkpoint.facts.get("config") == config:
                kept.add(described.stem)
        self._drop_all_but(kept)

    def _drop_all_but(self, kept: set[str]) -> None:
        for path in sorted(self._folder.glob("step-*")):  # .json before .safetensors
            if path.stem not in kept:
                path.unlink(missing_ok=True)
        for path in self._folder.glob(f".*{durable.TEMPORARY_SUFFIX}"):  # of killed attempts
            path.unlink(missing_ok=True)


def _valid(described: Path) -> Checkpoint | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(described.read_bytes())
        path = described.with_suffix(".safetensors")
        if facts["format"] == FORMAT and durable.sha256_of_file(path) == facts["sha256"]:
            return Checkpoint(path, facts)
    return None
