"""An attempt of an export: the version as a graph, checked against what is served, in a zip.

load -> reference -> export -> check -> publish. There is nothing to go on from: an attempt that
was stopped begins again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jobs.exports.archive import Export, pack_export
from jobs.progress import ProgressWriter
from jobs.training.interruption import Interruption
from models_cache import faults
from models_cache.artifacts import Artifact, read_artifact
from models_cache.backbone_weights import verified_weights
from models_cache.backbones import Classifier
from models_cache.blobs import BlobStore
from models_cache.classifiers import check_golden, load_classifier, outputs_of_classifier
from models_cache.export_check import check_images, compare_with_served, served_probabilities
from models_cache.export_formats import FORMATS, load_graph, write_graph
from models_cache.export_graph import ImageGraph


class _Steps:
    """What an attempt says of itself, and where it stops if it is asked to."""

    def __init__(self, progress: ProgressWriter, interruption: Interruption) -> None:
        self._progress = progress
        self._interruption = interruption

    def begin(self, phase: str) -> None:
        """Begin a phase, unless someone asked to stop."""
        self._interruption.phase = phase
        self._interruption.poll()
        self._progress.phase(phase)

    def advance(self, done: int, total: int) -> None:
        """Report images compared; leave if someone asked to stop."""
        self._progress.progress("images", done, total)
        self._interruption.poll()


def export(spec_path: Path, progress: ProgressWriter, interruption: Interruption) -> dict[str, Any]:
    """Export what a spec names, and return the result line.

    Raises:
        BlobMissing, ArtifactError: The published files are not what they were.
        WeightsError: Those of its backbone are gone, or not what they were.
        ExportError: It cannot be exported, or does not give what is served.
        StoppedOnRequest: SIGTERM arrived.
    """
    spec = json.loads(spec_path.read_bytes())
    steps = _Steps(progress, interruption)
    torch.set_num_threads(max(1, spec["threads"]))
    data_folder, folder = Path(spec["data_folder"]), Path(spec["attempt_folder"])
    blobs, into = BlobStore(data_folder / "blobs"), FORMATS[spec["format"]]
    steps.begin("load")
    artifact = read_artifact(blobs, spec["artifact_digest"])
    classifier = _load(artifact, blobs, data_folder / "weights")
    architecture = artifact.facts.architecture
    steps.begin("reference")
    images = check_images(artifact.facts.preprocessing)
    served = served_probabilities(classifier, artifact, images, steps.advance)
    steps.begin("export")
    path = folder / into.file
    write_graph(ImageGraph(classifier, artifact.facts).eval(), into, architecture, path)
    faults.reach("export.after_graph")
    steps.begin("check")
    run = load_graph(path, into, architecture, spec["threads"])
    agreement = compare_with_served(run, into.name, images, served, steps.advance)
    steps.begin("publish")
    made = Export(spec["model"], spec["version"], into.name, path, asdict(agreement))
    archive = folder / "export.zip"
    pack_export(blobs, artifact, made, archive)
    path.unlink()
    return {"file": blobs.put_file(archive).as_json(), "checked": asdict(agreement)}


def _load(artifact: Artifact, blobs: BlobStore, weights_folder: Path) -> Classifier:
    """Return the classifier of an artifact, which gives its golden outputs."""
    weights_path = None
    if artifact.facts.kind == "head":
        assert artifact.facts.weights is not None, "a head has a backbone"
        weights_path = verified_weights(weights_folder, artifact.facts.weights)
    classifier = load_classifier(artifact, blobs, weights_path)
    check_golden(outputs_of_classifier(classifier, artifact.facts.preprocessing), artifact, blobs)
    return classifier
