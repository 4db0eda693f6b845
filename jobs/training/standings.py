"""What a race has found: figures with intervals, who is beyond noise, and what to take.

Everything is measured out of fold on the training images, so val and test stay untouched. The
penalty of each head was chosen on the same predictions: a little optimistic, for all alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jobs.training.bootstrap import Comparison
from jobs.training.learning_curve import Point
from jobs.training.race_images import Judged
from jobs.training.race_spec import Entrant, Measure


@dataclass(frozen=True)
class Probe:
    """What cross-validation said of a head on one backbone.

    Args:
        entrant: Which backbone.
        receipt: Its weights and the numerics of its features, as a job's `resolved` has them.
        width: Length of its features, D.
        l2: The penalty that suits all images.
        feature_seconds: Of the pass over all images of the dataset; None if it was cached.
        logits: Out of fold, float32 `[N, C]`.
    """

    entrant: Entrant
    receipt: dict[str, Any]
    width: int
    l2: float
    feature_seconds: float | None
    logits: Tensor

    def facts(self) -> dict[str, Any]:
        """Return all but the logits and the entrant, JSON-ready; `of` reads it."""
        names = ("receipt", "width", "l2", "feature_seconds")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, entrant: Entrant, facts: dict[str, Any], logits: Tensor) -> Probe:
        """Rebuild from what `facts` gave."""
        names = ("receipt", "width", "l2", "feature_seconds")
        return cls(entrant=entrant, logits=logits, **{name: facts[name] for name in names})


@dataclass(frozen=True)
class Standing:
    """A probe beside the best one.

    Args:
        rank: From 1.
        probe: What it is about.
        figures: See `Judged.figures`.
        behind: The best one against it on the same images, by what the race is ranked by.
    """

    rank: int
    probe: Probe
    figures: dict[str, Any]
    behind: Comparison

    @property
    def is_level(self) -> bool:
        """Whether the best one is not better beyond noise."""
        return not self.behind.is_better

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        probe, entrant = self.probe, self.probe.entrant
        weights = probe.receipt["weights"]
        return {
            "rank": self.rank,
            "backbone": entrant.architecture,
            "weights": weights["name"],
            "weights_sha256": weights["sha256"],
            **self.figures,
            "behind_best": self.behind.as_json(),
            "indistinguishable_from_best": self.is_level,
            "feature_seconds": probe.feature_seconds,
            "parameters": entrant.parameters,
            "gflops": entrant.gflops,
            "feature_width": probe.width,
            "l2": probe.l2,
        }


@dataclass(frozen=True)
class Curve:
    """How well one backbone would have done with fewer images.

    Args:
        probe: Which backbone.
        points: Figures by number of images, the last with all of them.
        doubling: All images against half of them, image by image, in nats.
    """

    probe: Probe
    points: list[dict[str, Any]]
    doubling: Comparison

    @property
    def verdict(self) -> str:
        """Say whether more images would help."""
        if self.doubling.is_better:
            return (
                f"more images would help: from half of the images to all of them the loss fell by "
                f"{self.doubling.gain:.4f} nats, beyond noise"
            )
        return (
            "no sign that more images of this kind would help: from half of the images to all of "
            f"them the loss changed by {-self.doubling.gain:+.4f} nats, which is within noise"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "backbone": self.probe.entrant.architecture,
            "points": self.points,
            "doubling": self.doubling.as_json(),
            "more_images_would_help": self.doubling.is_better,
            "verdict": self.verdict,
        }


def rank(probes: Sequence[Probe], judged: Judged, measure: Measure) -> list[Standing]:
    """Return the standings, best first; ties go to the cheaper one."""
    ordered = sorted(probes, key=lambda p: (judged.cost(p.logits, measure), p.entrant.cost))
    best = ordered[0].logits
    return [
        Standing(
            place, probe, judged.figures(probe.logits), judged.compare(probe.logits, best, measure)
        )
        for place, probe in enumerate(ordered, start=1)
    ]


def curve_of(probe: Probe, points: Sequence[Point], judged: Judged) -> Curve:
    """Return a learning curve with the point of all images, which cross-validation has measured."""
    count = len(judged.labels)
    learned = count * (judged.fold_count - 1) / judged.fold_count or count
    everything = Point(1.0, learned, probe.logits)
    rows = [
        {"fraction": p.fraction, "images": round(p.images), **judged.figures(p.logits)}
        for p in (*points, everything)
    ]
    return Curve(probe, rows, judged.compare(points[-1].logits, probe.logits, "loss"))


def choose(standings: Sequence[Standing]) -> Standing:
    """Return the one to take: the cheapest of those that are not worse beyond noise."""
    level = [standing for standing in standings if standing.is_level]
    return min(level, key=lambda standing: (standing.probe.entrant.cost, standing.rank))


def recommend(standings: Sequence[Standing], curves: Sequence[Curve]) -> dict[str, Any]:
    """Return what to take and why, JSON-ready; see `choose`."""
    chosen = choose(standings)
    level = sum(standing.is_level for standing in standings)
    return {
        "backbone": chosen.probe.entrant.architecture,
        "weights": chosen.probe.receipt["weights"]["name"],
        "reason": _reason(standings[0], chosen, level, len(standings)),
        "more_images": curves[0].verdict if curves else None,
    }


def _reason(best: Standing, chosen: Standing, level: int, total: int) -> str:
    name, leader = chosen.probe.entrant.architecture, best.probe.entrant.architecture
    if total == 1:
        return f"{name} is the only one that was looked at"
    if chosen is best and level == 1:
        return f"{name} is the best, beyond noise"
    if chosen is best:
        return f"{name} is the best, and the cheapest of {level} that cannot be told apart"
    return (
        f"{name} is the cheapest of {level} that cannot be told apart on {chosen.behind.images} "
        f"images; {leader} measured best"
    )
