"""What the child of a race is told, as values; `jobs.specs` writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs.training.spec import TrainSpec

Measure = Literal["loss", "accuracy_top1", "mean_average_precision"]
RankBy = Measure | Literal["auto"]
Curves = Literal["best", "all", "none"]


@dataclass(frozen=True)
class Entrant:
    """One backbone with its weights, as it enters a race.

    Args:
        architecture: Backbone.
        weights: Name of its weights, or `DEFAULT`.
        parameters: How many it has, without a classifier.
        gflops: Of one image, if known.
    """

    architecture: str
    weights: str
    parameters: int
    gflops: float | None

    @property
    def name(self) -> str:
        """Names it among the others."""
        return f"{self.architecture}:{self.weights}"

    @property
    def cost(self) -> tuple[float, int]:
        """What the cheaper of two has less of: work per image, then parameters."""
        return (float("inf") if self.gflops is None else self.gflops), self.parameters


@dataclass(frozen=True, kw_only=True)
class RaceSpec:
    """The spec file of a race's attempt.

    Args:
        common: What an attempt with recipe `head` on the first entrant would be told.
        entrants: Who races, at least one.
        rank_by: What decides, measured out of fold; `auto`: what suits the images.
        learning_curve: Whose is drawn.
    """

    common: TrainSpec
    entrants: tuple[Entrant, ...]
    rank_by: RankBy
    learning_curve: Curves

    @classmethod
    def load(cls, path: Path) -> RaceSpec:
        """Read the spec file that the worker wrote."""
        value: dict[str, Any] = json.loads(path.read_bytes())
        return cls(
            common=TrainSpec.load(path),
            entrants=tuple(Entrant(**entrant) for entrant in value["entrants"]),
            rank_by=value["rank_by"],
            learning_curve=value["learning_curve"],
        )

    def of(self, entrant: Entrant) -> TrainSpec:
        """Return what an attempt with recipe `head` on one entrant would be told."""
        folder = self.common.run_folder / "checkpoints" / entrant.name.replace(":", "-")
        return replace(
            self.common,
            architecture=entrant.architecture,
            weights=entrant.weights,
            run_folder=folder,
        )
