"""The zip of an export: the graph and everything that a person needs to use it elsewhere."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.exports.example import example_code
from models_cache.artifacts import CARD_FILE, PLOT_FILES, Artifact, ArtifactFacts
from models_cache.blobs import BlobStore

#: The same content gives the same zip: what the archive says of time is always this.
_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK_BYTES = 1 << 20
_START = """\
# Export of {model}, version {version}, as {format}

- `{graph}`: input `images`, uint8 `[B, H, W, 3]`, upright RGB of any size; outputs `probabilities`
  and `logits`, float32 `[B, C]`. Resize, crop, normalisation and calibration are inside.
- `labels.json`: the C labels in the order of the outputs. `preprocessing.json`, `licence.json` and
  `export.json` say what is done, under which terms, and how it was checked.
- `python example.py photo.jpg` prints labels and scores.

What follows is the card of the model. `evaluation.json` and the code under "Loading it" belong to
the artifact (`GET /v1/models/{model}/versions/{version}/archive`), not to this export.

"""


@dataclass(frozen=True)
class Export:
    """What was exported, and how well it agrees.

    Args:
        model: Name of the model.
        version: Its number.
        format: Of the graph.
        graph: The graph's file, which keeps its name.
        checked: How far the graph is from what is served, JSON-ready.
    """

    model: str
    version: int
    format: str
    graph: Path
    checked: Mapping[str, Any]


def pack_export(blobs: BlobStore, artifact: Artifact, export: Export, destination: Path) -> None:
    """Write the zip: the graph, labels, preprocessing, licence, card, plots and an example.

    Args:
        blobs: Where the artifact's files are.
        artifact: What was exported.
        export: The graph, and what is known of it.
        destination: The zip's path.

    Raises:
        BlobMissing, BlobCorrupt: The card or a plot is not what it was.
    """
    facts = artifact.facts
    plots = [name for name in PLOT_FILES if name in artifact.files]
    texts = {
        "README.md": _readme(blobs, artifact, export),
        "example.py": example_code(export.format, export.model, export.version, facts.task),
        "labels.json": _json(
            {"task": facts.task, "labels": facts.classes, "thresholds": facts.thresholds}
        ),
        "preprocessing.json": _json(facts.preprocessing.as_json()),
        "licence.json": _json({"pretrained_weights": _licence(facts)}),
        "export.json": _json({**_facts(export), "artifact_digest": artifact.digest}),
    }
    with zipfile.ZipFile(destination, "w") as archive:
        for name, text in sorted(texts.items()):
            archive.writestr(zipfile.ZipInfo(name, _TIME), text.encode(), zipfile.ZIP_DEFLATED)
        for name in plots:
            plot = blobs.read(artifact.files[name].sha256)
            archive.writestr(zipfile.ZipInfo(name, _TIME), plot, zipfile.ZIP_DEFLATED)
        entry = zipfile.ZipInfo(export.graph.name, _TIME)  # weights do not compress
        with (
            export.graph.open("rb") as source,
            archive.open(entry, "w", force_zip64=True) as member,
        ):
            shutil.copyfileobj(source, member, _CHUNK_BYTES)


def _readme(blobs: BlobStore, artifact: Artifact, export: Export) -> str:
    start = _START.format(
        model=export.model, version=export.version, format=export.format, graph=export.graph.name
    )
    card = artifact.files.get(CARD_FILE)  # artifacts of format 1 have none
    return start if card is None else start + blobs.read(card.sha256).decode()


def _licence(facts: ArtifactFacts) -> dict[str, Any] | None:
    if facts.weights is None:
        return None
    told = ("name", "file", "sha256", "license", "source")
    return {key: facts.weights.get(key) for key in told}


def _facts(export: Export) -> dict[str, Any]:
    return {name: value for name, value in asdict(export).items() if name != "graph"}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
