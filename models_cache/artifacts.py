"""The published form of a model: `artifact.json` and two safetensors files, all blobs.

`artifact.json` holds every fact (format, task, architecture, weights, preprocessing, classes,
metrics, lineage, numerics) and the hashes of the other files; its own hash is the artifact's
digest, so a digest fixes every byte. Nothing here needs torch: the api reads, checks, packs and
imports artifacts; `models_cache.classifiers` turns them into modules.

Two kinds. `head`: `model.safetensors` holds `head.weight` `[C, D]` and `head.bias` `[C]`, and the
backbone is the verified pretrained file `weights["sha256"]`. `whole`: it holds the state of the
whole classifier, keys `backbone.*` and `head.*`.

Format 2 adds calibration and files for people: the model card, its plots, the evaluation, and
what known images look like. Format 1 has none of them, and is still read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from models_cache.blobs import Blob, BlobStore
from models_cache.calibration import Calibration
from models_cache.durable import canonical_json, sha256_of_bytes
from models_cache.errors import ArtifactMalformed
from models_cache.preprocessing import Preprocessing
from models_cache.svg import check_svg

FORMAT = 2
MULTILABEL = "multi-label-classification"
FACTS_FILE = "artifact.json"
MODEL_FILE = "model.safetensors"
GOLDEN_FILE = "golden.safetensors"
FAMILIARITY_FILE = "familiarity.safetensors"
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "README.md"
PLOT_FILES = (
    "confusion.svg", "reliability.svg", "risk-coverage.svg", "roc.svg", "precision-recall.svg",
)  # fmt: skip
_NEEDED = frozenset({MODEL_FILE, GOLDEN_FILE})
_POSSIBLE = {
    1: _NEEDED,
    FORMAT: _NEEDED | {FAMILIARITY_FILE, EVALUATION_FILE, CARD_FILE, *PLOT_FILES},
}
#: Every name that a file of an artifact may have.
ARTIFACT_FILES = _POSSIBLE[FORMAT] | {FACTS_FILE}

_MAX_FACTS_BYTES = 16 << 20
_MAX_EVALUATION_BYTES = 1 << 30
_MAX_CARD_BYTES = 16 << 20
_MAX_CLASSES = 100_000

_JSON_TYPES = {
    "architecture": str,
    "preprocessing": dict,
    "classes": list,
    "feature_width": int,
    "metrics": dict,
    "lineage": dict,
    "numerics": dict,
}

Arrays = Mapping[str, NDArray[Any]]
Kind = Literal["head", "whole"]


@dataclass(frozen=True)
class ArtifactFacts:
    """What `artifact.json` says besides its format and files.

    Args:
        task: Task type, `classification` or `multi-label-classification`.
        architecture: torchvision's builder of the backbone.
        kind: Whether `model.safetensors` holds the head or everything.
        weights: The pretrained file: `name`, `sha256`, `file`, `has_head`, ...; None from scratch.
        preprocessing: What turns an upright image into input.
        classes: Class names; logit i belongs to `classes[i]`.
        feature_width: Numbers per image that the backbone gives, D.
        metrics: Figures measured on held-out images.
        lineage: Job, data set, recipe and code version it came from.
        numerics: Versions, device and engine it was made with.
        calibration: How logits become scores; None: as they are, and nothing is promised.
        thresholds: With several labels: the score from which on a class is one, C of them.
    """

    task: str
    architecture: str
    kind: Kind
    weights: dict[str, Any] | None
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    feature_width: int
    metrics: dict[str, float] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    numerics: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    thresholds: tuple[float, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; `from_json` reads it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.thresholds is None:  # as artifacts of one label always were
            del plain["thresholds"]
        return {
            **plain,
            "preprocessing": self.preprocessing.as_json(),
            "classes": list(self.classes),
            "calibration": None if self.calibration is None else self.calibration.as_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArtifactFacts:
        """Rebuild from `as_json`'s form; `KeyError`, `TypeError` or `ValueError` if it is none."""
        for key, kind in _JSON_TYPES.items():
            if not isinstance(value[key], kind):
                raise TypeError(f"{key} is {value[key]!r:.100}, not a {kind.__name__}")
        if not all(isinstance(name, str) and name for name in value["classes"]):
            raise ValueError("a class name is not a text")
        calibration = value.get("calibration")
        facts = cls(
            task=str(value["task"]),
            architecture=str(value["architecture"]),
            kind=value["kind"],
            weights=None if value["weights"] is None else dict(value["weights"]),
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            classes=tuple(value["classes"]),
            feature_width=value["feature_width"],
            metrics={str(k): float(v) for k, v in dict(value["metrics"]).items()},
            lineage=dict(value["lineage"]),
            numerics=dict(value["numerics"]),
            calibration=None if calibration is None else Calibration.from_json(calibration),
            thresholds=tuple(map(float, value["thresholds"])) if "thresholds" in value else None,
        )
        facts._check()
        return facts

    def _check(self) -> None:
        """Raise `ValueError` for facts that cannot be a model's."""
        if self.task not in ("classification", MULTILABEL) or self.kind not in ("head", "whole"):
            raise ValueError(f"unknown task {self.task!r} or kind {self.kind!r}")
        if self.kind == "head" and (self.weights is None or "sha256" not in self.weights):
            raise ValueError("a head needs the sha256 of its backbone's weights")
        if not 1 <= len(self.classes) <= _MAX_CLASSES or len(set(self.classes)) < len(self.classes):
            raise ValueError("class names are missing, too many or not unique")
        if isinstance(self.feature_width, bool) or self.feature_width < 1:
            raise ValueError(f"feature width {self.feature_width!r} is not a positive whole number")
        thresholds = self.thresholds or ()
        if len(thresholds) != (len(self.classes) if self.task == MULTILABEL else 0):
            raise ValueError(f"{len(thresholds)} thresholds do not fit the classes and the task")
        if not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError("a threshold is no probability")
        if not all(map(math.isfinite, self.metrics.values())):
            raise ValueError("a metric is not finite")


@dataclass(frozen=True)
class Artifact:
    """An immutable, published model.

    Args:
        digest: SHA-256 of the canonical bytes of `artifact.json`.
        facts: What `artifact.json` says.
        files: `artifact.json`, `model.safetensors`, `golden.safetensors` and others by name.
    """

    digest: str
    facts: ArtifactFacts
    files: dict[str, Blob]

    @property
    def backbone_key(self) -> tuple[str, str, str]:
        """Architecture, sha256 of the backbone's tensors, preprocessing digest.

        Artifacts with equal keys share one loaded backbone; a whole model is alone with its own.
        """
        whole = self.facts.kind == "whole" or self.facts.weights is None
        weights = self.facts.weights or {}
        sha256 = self.files[MODEL_FILE].sha256 if whole else str(weights["sha256"])
        return self.facts.architecture, sha256, self.facts.preprocessing.digest

    def files_as_json(self) -> dict[str, dict[str, str | int]]:
        """Return `{name: {"sha256", "size"}}`: how results and rows point to the files."""
        return {name: blob.as_json() for name, blob in self.files.items()}


def write_artifact(
    blobs: BlobStore,
    facts: ArtifactFacts,
    model: Arrays,
    golden: Arrays,
    more: Mapping[str, bytes] | None = None,
) -> Artifact:
    """Store the files of an artifact durably and return it.

    Args:
        blobs: Where the files go.
        facts: What `artifact.json` will say.
        model: Tensors of `model.safetensors` by name, as its kind wants them.
        golden: `images` uint8 `[G, crop, crop, 3]`, `features` float32 `[G, D]` and `logits`
            float32 `[G, C]`: outputs that a loaded model must reproduce.
        more: Bytes of the files that only some artifacts have, by name.
    """
    contents = {
        MODEL_FILE: tensor_bytes(model), GOLDEN_FILE: tensor_bytes(golden), **(more or {})
    }  # fmt: skip
    parts = dict(zip(contents, blobs.put_all(contents.values()), strict=True))
    listed = {name: blob.as_json() for name, blob in parts.items()}
    data = canonical_json({"format": FORMAT, **facts.as_json(), "files": listed})
    described = blobs.put_bytes(data)
    return Artifact(described.sha256, facts, {FACTS_FILE: described, **parts})


def describe_artifact(blobs: BlobStore, digest: str) -> Artifact:
    """Return the artifact of a digest by its description alone; other files are not looked at.

    Raises:
        BlobMissing: There is no such artifact.
        BlobCorrupt: Its description changed on disk.
        ArtifactMalformed: It is no description of a format this version knows.
    """
    artifact = parse_artifact(blobs.read(digest))
    if artifact.digest != digest:
        raise ArtifactMalformed(f"{FACTS_FILE} is not in its canonical form")
    return artifact


def read_artifact(blobs: BlobStore, digest: str) -> Artifact:
    """Return the artifact of a digest; every file's bytes are checked against their hash.

    Raises:
        BlobMissing: A file is not in the store.
        BlobCorrupt: A file's bytes changed on disk.
        ArtifactMalformed: The files are no artifact of a format this version knows.
    """
    artifact = describe_artifact(blobs, digest)
    for blob in artifact.files.values():
        blobs.verify(blob.sha256)
    return artifact


def parse_artifact(data: bytes) -> Artifact:
    """Return the artifact that the bytes of an `artifact.json` describe; opens no other file.

    Raises:
        ArtifactMalformed: The bytes are no `artifact.json` of a format this version knows.
    """
    try:
        if len(data) > _MAX_FACTS_BYTES:
            raise ValueError(f"{FACTS_FILE} is larger than {_MAX_FACTS_BYTES} bytes")
        value = json.loads(data)
        if value["format"] not in _POSSIBLE:
            raise ValueError(f"format {value['format']!r} is none of {list(_POSSIBLE)}")
        if not _NEEDED <= set(value["files"]) <= _POSSIBLE[value["format"]]:
            raise ValueError(f"files are {sorted(value['files'])[:20]}")
        files = {
            name: Blob(str(entry["sha256"]), int(entry["size"]))
            for name, entry in value["files"].items()
        }
        facts = ArtifactFacts.from_json(value)
        canonical = canonical_json(value)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ArtifactMalformed(str(error) or type(error).__name__) from error
    described = Blob(sha256_of_bytes(canonical), len(canonical))
    return Artifact(described.sha256, facts, {FACTS_FILE: described, **files})


def verify_artifact(blobs: BlobStore, digest: str) -> Artifact:
    """Return the artifact after checking its tensors too: names, shapes, types, finite values.

    And its other files: those that browsers may be shown hold nothing that acts. What is done
    once for an imported artifact, before it may be published.

    Raises:
        BlobMissing: A file is not in the store.
        BlobCorrupt: A file's bytes changed on disk.
        ArtifactMalformed: Facts and tensors do not fit together.
    """
    artifact = read_artifact(blobs, digest)
    facts = artifact.facts
    classes, width, crop = len(facts.classes), facts.feature_width, facts.preprocessing.crop_px
    model, golden = read_model(blobs, artifact), read_golden(blobs, artifact)
    names = set(model)
    if facts.kind == "head" and names != {"head.weight", "head.bias"}:
        raise ArtifactMalformed(f"a head's tensors are named {sorted(names)[:5]}")
    expect_array("head.weight", model, (classes, width), np.float32)
    expect_array("head.bias", model, (classes,), np.float32)
    shown = len(golden["images"]) if "images" in golden else 0
    expect_array("images", golden, (max(1, shown), crop, crop, 3), np.uint8)
    expect_array("features", golden, (shown, width), np.float32)
    expect_array("logits", golden, (shown, classes), np.float32)
    for name, array in (*model.items(), *golden.items()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactMalformed(f"tensor {name} holds values that are not finite")
    if FAMILIARITY_FILE in artifact.files:
        _check_familiarity(read_familiarity(blobs, artifact), width)
    for name in sorted(artifact.files.keys() & {EVALUATION_FILE, CARD_FILE, *PLOT_FILES}):
        try:
            _check_document(blobs, artifact.files[name], name)
        except (ValueError, RecursionError) as error:
            raise ArtifactMalformed(f"{name}: {error}") from error
    return artifact


def read_model(blobs: BlobStore, artifact: Artifact) -> dict[str, NDArray[Any]]:
    """Return the tensors of `model.safetensors` by name; hash checked."""
    return _arrays(blobs, artifact, MODEL_FILE)


def read_golden(blobs: BlobStore, artifact: Artifact) -> dict[str, NDArray[Any]]:
    """Return the tensors of `golden.safetensors`: `images`, `features`, `logits`; hash checked."""
    return _arrays(blobs, artifact, GOLDEN_FILE)


def read_familiarity(blobs: BlobStore, artifact: Artifact) -> dict[str, NDArray[Any]]:
    """Return the tensors of `familiarity.safetensors`; hash checked. See `models_cache.novelty`."""
    return _arrays(blobs, artifact, FAMILIARITY_FILE)


def _check_familiarity(arrays: Arrays, width: int) -> None:
    """Check names, shapes, types and values, so that judging an image cannot fail."""
    axes, novelties = arrays.get("axes"), arrays.get("novelties")
    count = axes.shape[1] if axes is not None and axes.ndim == 2 else 0
    known = len(novelties) if novelties is not None and novelties.ndim == 1 else 0
    expect_array("centre", arrays, (width,), np.float32)
    expect_array("axes", arrays, (width, max(1, count)), np.float16)
    expect_array("novelties", arrays, (max(1, known),), np.float32)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ArtifactMalformed(f"{FAMILIARITY_FILE} holds values that are not finite")
    if (np.diff(arrays["novelties"]) < 0).any():
        raise ArtifactMalformed(f"{FAMILIARITY_FILE}: novelties are not ascending")


def _check_document(blobs: BlobStore, blob: Blob, name: str) -> None:
    """Raise `ValueError` for a file that is not what its name says."""
    limit = _MAX_EVALUATION_BYTES if name == EVALUATION_FILE else _MAX_CARD_BYTES
    if blob.size_bytes > limit:
        raise ValueError(f"{blob.size_bytes} bytes, the limit is {limit}")
    text = blobs.read(blob.sha256).decode()
    if name in PLOT_FILES:
        check_svg(text)
    elif name == EVALUATION_FILE:
        value = json.loads(text)
        if not isinstance(value, dict) or canonical_json(value) != text.encode():
            raise ValueError("not a JSON object in its canonical form")


def _arrays(blobs: BlobStore, artifact: Artifact, name: str) -> dict[str, NDArray[Any]]:
    data = blobs.read(artifact.files[name].sha256)
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactMalformed(f"{name}: {error}") from error
    return arrays


def tensor_bytes(arrays: Arrays) -> bytes:
    """Return the bytes of a safetensors file that holds arrays by name."""
    # Strided views would be written in memory order, that is, wrong: make them contiguous.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data: bytes = safetensors.numpy.save(contiguous)
    return data


def expect_array(
    name: str, arrays: Arrays, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    """Raise `ArtifactMalformed` unless there is an array of that name, shape and type."""
    array = arrays.get(name)
    if array is None or array.shape != shape or array.dtype != dtype:
        found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise ArtifactMalformed(f"tensor {name} is {found}, not {dtype.__name__}{list(shape)}")
