"""A race: which of several frozen backbones suits a dataset, by cross-validation.

weights -> probes -> learning-curve. Each backbone sees each image once; its features are cached
under the key by which a later fine-tuning finds them. What cross-validation said of a backbone is
kept in the run folder, so that an attempt that was stopped goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from jobs.datasets.manifest import TRAIN, VAL, Manifest
from jobs.errors import FeaturesNotFinite, OutOfMemory
from jobs.eta import PhaseEstimate
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.recipes import HeadRecipe
from jobs.training.attempt import frozen_features, settle
from jobs.training.checkpoint import Checkpoints
from jobs.training.device import peak_memory
from jobs.training.frozen import wanted_engine
from jobs.training.head import fit_head
from jobs.training.interruption import Interruption
from jobs.training.lane import LaneProgress
from jobs.training.learning_curve import learning_curve
from jobs.training.loop import TrainingData
from jobs.training.outcome import Ready
from jobs.training.place import Place
from jobs.training.race_images import Judged
from jobs.training.race_spec import Entrant, Measure, RaceSpec
from jobs.training.sources import decode_dataset, fetch_backbone, obtain_weights
from jobs.training.standings import (
    Curve,
    Probe,
    choose,
    curve_of,
    rank,
    recommend,
)
from models_cache import faults
from models_cache.durable import canonical_json, sha256_of_bytes
from models_cache.errors import GraftError, to_wire
from models_cache.preprocessing import Preprocessing
from models_cache.weights_errors import WeightsError

Report = Callable[[int, int], None]  # images done, of how many

#: What keeps one backbone out of a race, and no other.
_OUT_OF_THE_RACE = (WeightsError, FeaturesNotFinite, OutOfMemory)


@dataclass
class _Race:
    """What is known so far.

    Args:
        spec: What the child was told.
        place: Where it computes; its progress is the race's.
        manifest: The dataset.
        judged: Its training images.
        measure: What decides.
        probes: One for each backbone that cross-validation is done with.
        failures: Why the others are out.
        leading: The best probe so far, with its features of the training images, float32
            `[N, D]`, if this attempt read them.
    """

    spec: RaceSpec
    place: Place
    manifest: Manifest
    judged: Judged
    measure: Measure
    probes: list[Probe] = field(default_factory=list)
    failures: list[tuple[Entrant, GraftError]] = field(default_factory=list)
    leading: tuple[Probe, Tensor | None] | None = None


def race(spec: RaceSpec, progress: ProgressWriter, interruption: Interruption) -> dict[str, Any]:
    """Run an attempt of a race and return its result line.

    A backbone that cannot take part (no weights, too little memory, features that are not finite)
    is named in the result; only if none can, the race fails with what the first one said.

    Raises:
        RecipeInvalid: It shall be ranked by what is not measured of such images.
        GraftError: Another fact that the user can act on.
        StoppedOnRequest: SIGTERM arrived; the next attempt goes on behind the last probe.
    """
    place = Place.of(spec.common, progress, interruption)
    manifest = Manifest.load(place.blobs, spec.common.manifest_sha256)
    judged = Judged.of(manifest, spec.common.parameters["folds"])
    run = _Race(spec, place, manifest, judged, judged.measure(spec.rank_by))
    _recall(run)
    _probe_all(run, _with_weights(run))
    if not run.probes:
        raise run.failures[0][1]
    standings = rank(run.probes, judged, run.measure)
    curves = _curves(run, [standing.probe for standing in standings])
    return {
        "recommendation": recommend(standings, curves),
        "rank_by": run.measure,
        "images": len(judged.labels),
        "classes": list(judged.classes),
        "folds": judged.fold_count,
        "ranking": [standing.as_json() for standing in standings],
        "learning_curves": [curve.as_json() for curve in curves],
        "failures": [
            {"backbone": entrant.architecture, "weights": entrant.weights, "error": to_wire(error)}
            for entrant, error in run.failures
        ],
        "next_engine": _next_engine(run, choose(standings).probe),
        "resources": peak_memory(place.device),
    }


def _next_engine(run: _Race, probe: Probe) -> dict[str, Any] | None:
    """Return what to build for the trainings that follow on the recommended backbone."""
    receipt = probe.receipt
    preprocessing = Preprocessing.from_json(receipt["preprocessing"])
    architecture = probe.entrant.architecture
    return wanted_engine(run.place, architecture, receipt["weights"], preprocessing)


def _recall(run: _Race) -> None:
    """Take over what earlier attempts found out."""
    for entrant in run.spec.entrants:
        record = Checkpoints(run.spec.of(entrant).run_folder).newest()
        if record is not None and record.facts.get("config") == _configuration(run, entrant):
            run.place.interruption.resume_after(float(record.facts["elapsed_seconds"]))
            _take(run, Probe.of(entrant, record.facts, record.tensors()["logits"]), None)


def _with_weights(run: _Race) -> list[Entrant]:
    """Phase `weights`: fetch what is not in the vault; return who is still to be looked at."""
    run.place.begin("weights")
    known = {probe.entrant for probe in run.probes}
    able = []
    for entrant in run.spec.entrants:
        try:
            if entrant not in known:
                obtain_weights(replace(run.place, spec=run.spec.of(entrant)))
                able.append(entrant)
        except WeightsError as error:
            _fail(run, entrant, error)
    return able


def _fail(run: _Race, entrant: Entrant, error: GraftError) -> None:
    run.failures.append((entrant, error))
    run.place.progress.warning("out-of-the-race", f"{entrant.name}: {error}")


def _probe_all(run: _Race, entrants: list[Entrant]) -> None:
    """Phase `probes`: features and cross-validation, one backbone after the other."""
    place = run.place
    place.progress.expect(PhaseEstimate())  # this phase is nearly all there is, counted by work
    place.begin("probes")
    total, done = sum(map(_work, entrants)), 0.0
    for number, entrant in enumerate(entrants):
        if place.interruption.out_of_time and run.probes:
            left = f"{len(entrants) - number} of {len(run.spec.entrants)} backbones are left out"
            place.progress.warning("time-limit-reached", left)
            return
        part = _Part(place, done, _work(entrant), total)
        try:
            with place.memory():
                _take(run, *_probe(run, entrant, part.report))
        except _OUT_OF_THE_RACE as error:
            _fail(run, entrant, error)
        done += part.own


@dataclass(frozen=True)
class _Part:
    """One backbone's part of the phase's work, counted in multiplications: large ones take longer.

    Args:
        place: Whose progress it is.
        before: Work done by those before it, in billions of multiplications per image.
        own: Its own.
        total: That of all.
    """

    place: Place
    before: float
    own: float
    total: float

    def report(self, done: int, images: int) -> None:
        """Report that the backbone has seen some of its images; leave if asked to stop."""
        work = self.before * images + self.own * done
        self.place.advance("gflops", round(work), max(1, round(self.total * images)))


def _work(entrant: Entrant) -> float:
    """Return the work per image; from the parameters where it is not known."""
    return entrant.parameters / 1e9 if entrant.gflops is None else entrant.gflops


def _take(run: _Race, probe: Probe, features: Tensor | None) -> None:
    """Add a probe; keep the features of the one that leads, for its learning curve."""
    run.probes.append(probe)
    run.place.interruption.has_model = True
    cost = run.judged.cost(probe.logits, run.measure)
    if run.leading is None or cost < run.judged.cost(run.leading[0].logits, run.measure):
        run.leading = probe, features


def _probe(run: _Race, entrant: Entrant, report: Report) -> tuple[Probe, Tensor]:
    """Cross-validate a head on one backbone, and record what it said.

    Returns:
        The probe and the features of the training images, float32 `[N, D]`.
    """
    ready, lane = _enter(run, entrant, report)
    assert isinstance(ready.recipe, HeadRecipe), "a race has recipe `head`"
    began = time.monotonic()
    features = frozen_features(ready)[torch.from_numpy(ready.data.train)]
    embedded_seconds = time.monotonic() - began if lane.embedded else None
    faults.reach("race.after_features")

    def poll(_done: int, _total: int) -> bool:
        run.place.interruption.poll()
        return False  # a search that ends early would not be comparable

    fit = fit_head(
        features.to(run.place.device),
        run.judged.labels,
        run.judged.contents,
        len(run.judged.classes),
        ready.recipe,
        poll,
    )
    probe = Probe(
        entrant=entrant,
        receipt=lane.receipt,
        width=ready.backbone.width,
        l2=fit.l2,
        feature_seconds=embedded_seconds,
        logits=fit.out_of_fold_logits,
    )
    facts = {
        **probe.facts(),
        "step": 1,  # there is one record of a backbone
        "config": _configuration(run, entrant),
        "elapsed_seconds": run.place.interruption.elapsed_seconds,
    }
    Checkpoints(run.spec.of(entrant).run_folder).save({"logits": probe.logits}, facts)
    run.place.progress.checkpoint(len(run.probes) + 1)
    faults.reach("race.after_probe")
    return probe, features


def _enter(run: _Race, entrant: Entrant, report: Report) -> tuple[Ready, LaneProgress]:
    """Return a backbone with the dataset as it wants it, and what it reports to."""
    spec = run.spec.of(entrant)
    lane = LaneProgress(spec.attempt_folder / FILE_NAME, entrant.name, report)
    place = replace(run.place, spec=spec, progress=lane)
    backbone = fetch_backbone(place)
    dataset = decode_dataset(place, backbone.preprocessing)
    train, val = dataset.indices(TRAIN), dataset.indices(VAL)
    data = TrainingData(dataset, train, val, backbone.preprocessing)
    return settle(place, backbone, data), lane


def _configuration(run: _Race, entrant: Entrant) -> str:
    """Return the hash of what a record must have in common with an attempt to be its own."""
    parts = {
        "dataset": run.manifest.digest,
        "entrant": entrant.name,
        "parameters": dict(run.spec.common.parameters),
        "numerics": run.place.numerics.as_json(),
    }
    return sha256_of_bytes(canonical_json(parts))


def _curves(run: _Race, probes: list[Probe]) -> list[Curve]:
    """Phase `learning-curve`: of the winner, of all, or of none; the winner's first."""
    asked = {"best": probes[:1], "all": probes, "none": []}[run.spec.learning_curve]
    run.place.begin("learning-curve")
    judged, place = run.judged, run.place
    curves = []
    for number, probe in enumerate(asked):
        if place.interruption.out_of_time:
            place.progress.warning("time-limit-reached", "learning curves are missing")
            break

        def poll(done: int, total: int, number: int = number) -> None:
            place.advance("heads", number * total + done, len(asked) * total)

        features = _features_again(run, probe).to(place.device)
        points = learning_curve(
            features, judged.labels, judged.contents, judged.folds, probe.l2, poll
        )
        curves.append(curve_of(probe, points, judged))
    return curves


def _features_again(run: _Race, probe: Probe) -> Tensor:
    """Return the features of the training images, float32 `[N, D]`: at hand, or cached."""
    if run.leading is not None and run.leading[0] is probe and run.leading[1] is not None:
        return run.leading[1]
    ready, _ = _enter(run, probe.entrant, lambda _done, _total: run.place.interruption.poll())
    return frozen_features(ready)[torch.from_numpy(ready.data.train)]
