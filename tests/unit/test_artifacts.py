from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.archives import pack_artifact, unpack_artifact
from models_cache.artifacts import (
    Artifact,
    ArtifactFacts,
    Kind,
    parse_artifact,
    read_artifact,
    read_golden,
    tensor_bytes,
    verify_artifact,
    write_artifact,
)
from models_cache.backbones import Classifier, build_backbone, feature_width
from models_cache.blobs import BlobStore
from models_cache.calibration import Calibration, Level
from models_cache.classifiers import (
    check_golden,
    golden_outputs,
    load_classifier,
    load_head,
    outputs_of_classifier,
    tensors_to_publish,
)
from models_cache.durable import canonical_json
from models_cache.engines import choose_engine
from models_cache.errors import (
    ArtifactGoldenMismatch,
    ArtifactMalformed,
    BlobCorrupt,
    BlobMissing,
)
from models_cache.features import freeze
from models_cache.novelty import fit_familiarity
from models_cache.preprocessing import Preprocessing
from models_cache.svg import Drawing
from models_cache.weights_errors import WeightsKeysMismatch

ARCHITECTURE = "squeezenet1_1"
SMALL = Preprocessing(resize_px=72, crop_px=64)


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random pretrained weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "drawn.pth"
    torch.save(build_backbone(ARCHITECTURE).state_dict(), path)
    return path


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def classifier(weights_path: Path) -> Classifier:
    torch.manual_seed(1)
    width = feature_width(ARCHITECTURE)
    backbone = build_backbone(ARCHITECTURE, weights_path=weights_path, has_head=False)
    model = Classifier(backbone, width, 3).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def facts(kind: Kind, **different: object) -> ArtifactFacts:
    values: dict[str, Any] = {
        "task": "classification",
        "architecture": ARCHITECTURE,
        "kind": kind,
        "weights": {"name": "DRAWN", "sha256": "0" * 64, "file": "drawn.pth", "has_head": False},
        "preprocessing": SMALL,
        "classes": ("ant", "bee", "Wespe 🐝"),
        "feature_width": feature_width(ARCHITECTURE),
        "metrics": {"val/accuracy_top1": 0.5},
        "lineage": {"job_id": "job_1"},
    }
    return ArtifactFacts(**values | different)


def published(blobs: BlobStore, model: Classifier, kind: Kind, **different: object) -> Artifact:
    tensors, golden = tensors_to_publish(model, kind), golden_outputs(model, SMALL)
    return write_artifact(blobs, facts(kind, **different), tensors, golden)


@pytest.mark.parametrize("kind", ["head", "whole"])
def test_a_loaded_classifier_gives_the_logits_of_the_trained_one(
    blobs: BlobStore, classifier: Classifier, weights_path: Path, kind: Kind
) -> None:
    written = published(blobs, classifier, kind)
    artifact = read_artifact(blobs, written.digest)
    assert artifact == written
    assert verify_artifact(blobs, written.digest) == written
    loaded = load_classifier(artifact, blobs, weights_path)
    assert not loaded.training
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), classifier(images))
    weight, bias = load_head(artifact, blobs)
    assert torch.equal(torch.from_numpy(weight.copy()), classifier.head.weight)
    assert torch.equal(torch.from_numpy(bias.copy()), classifier.head.bias)
    check_golden(outputs_of_classifier(loaded, artifact.facts.preprocessing), artifact, blobs)


def test_a_head_is_small_and_shares_its_backbone(blobs: BlobStore, classifier: Classifier) -> None:
    head = published(blobs, classifier, "head")
    whole = published(blobs, classifier, "whole")
    other = published(blobs, classifier, "head", lineage={"job_id": "job_2"})
    assert head.files["model.safetensors"].size_bytes < 10_000
    assert head.digest != other.digest
    assert head.backbone_key == other.backbone_key
    assert head.backbone_key != whole.backbone_key


def with_documents(blobs: BlobStore, model: Classifier, **different: bytes) -> Artifact:
    """Publish a head with a card, a plot, an evaluation and familiar features."""
    features = torch.randn(40, feature_width(ARCHITECTURE))
    familiarity = fit_familiarity(features, torch.arange(40) % 5)
    assert familiarity is not None
    documents = {
        "README.md": "# Grüße".encode(),
        "roc.svg": Drawing(10, 10, "title").as_bytes(),
        "evaluation.json": canonical_json({"format": 2}),
        "familiarity.safetensors": tensor_bytes(familiarity.arrays()),
    }
    named = {name.replace("__", "."): data for name, data in different.items()}
    tensors, golden = tensors_to_publish(model, "head"), golden_outputs(model, SMALL)
    calibration = Calibration(1.25, "val", 40, 0.95, (Level(1.0, 0.0, 0.1, 0.2),))
    return write_artifact(
        blobs, facts("head", calibration=calibration), tensors, golden, documents | named
    )


def test_card_plots_evaluation_and_calibration_are_part_of_an_artifact(
    blobs: BlobStore, classifier: Classifier, tmp_path: Path
) -> None:
    written = with_documents(blobs, classifier)
    assert verify_artifact(blobs, written.digest) == written
    assert written.facts.calibration is not None
    other = BlobStore(tmp_path / "other")
    with (tmp_path / "x.zip").open("w+b") as file:
        pack_artifact(blobs, written.files_as_json(), file)
    (tmp_path / "other").mkdir()
    assert unpack_artifact(other, tmp_path / "x.zip") == written


@pytest.mark.parametrize(
    "wrong",
    [
        {"README__md": b"\xff"},
        {"roc__svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"},
        {"roc__svg": b"no drawing"},
        {"evaluation__json": b'{"format": NaN}'},
        {"evaluation__json": b"[]"},
        {"evaluation__json": b'{"b": 1,  "a": 2}'},
        {"familiarity__safetensors": tensor_bytes({"centre": np.zeros(512, np.float32)})},
        {"familiarity__safetensors": b"\xff" * 64},
    ],
)
def test_documents_that_are_not_what_their_name_says_are_refused(
    blobs: BlobStore, classifier: Classifier, wrong: dict[str, bytes]
) -> None:
    with pytest.raises(ArtifactMalformed):
        verify_artifact(blobs, with_documents(blobs, classifier, **wrong).digest)


@pytest.mark.parametrize("fault", ["axes", "order", "nan", "centre"])
def test_familiar_features_that_cannot_be_used_are_refused(
    blobs: BlobStore, classifier: Classifier, fault: str
) -> None:
    width = feature_width(ARCHITECTURE)
    arrays: dict[str, Any] = {
        "centre": np.zeros(width, np.float32),
        "axes": np.zeros((width, 2), np.float16),
        "novelties": np.array([0.1, 0.2], np.float32),
    }
    broken = {
        "axes": {"axes": arrays["axes"][:5]},
        "order": {"novelties": arrays["novelties"][::-1]},
        "nan": {"novelties": np.array([0.1, np.nan], np.float32)},
        "centre": {"centre": arrays["centre"].astype(np.float64)},
    }
    good = tensor_bytes(arrays)
    sound = with_documents(blobs, classifier, familiarity__safetensors=good)
    verify_artifact(blobs, sound.digest)
    bad = tensor_bytes(arrays | broken[fault])
    digest = with_documents(blobs, classifier, familiarity__safetensors=bad).digest
    with pytest.raises(ArtifactMalformed):
        verify_artifact(blobs, digest)


def test_an_artifact_of_the_first_format_is_still_read(
    blobs: BlobStore, classifier: Classifier, weights_path: Path
) -> None:
    value = json.loads(blobs.read(published(blobs, classifier, "head").digest))
    del value["calibration"]
    old = blobs.put_bytes(canonical_json({**value, "format": 1}))
    artifact = verify_artifact(blobs, old.sha256)
    assert artifact.facts.calibration is None
    check_golden(
        outputs_of_classifier(
            load_classifier(artifact, blobs, weights_path), artifact.facts.preprocessing
        ),
        artifact,
        blobs,
    )
    newer = {**value, "format": 1, "files": {**value["files"], "README.md": old.as_json()}}
    with pytest.raises(ArtifactMalformed, match="README"):
        parse_artifact(canonical_json(newer))


def test_golden_outputs_reveal_other_weights(
    blobs: BlobStore, classifier: Classifier, weights_path: Path
) -> None:
    artifact = published(blobs, classifier, "head")
    loaded = load_classifier(artifact, blobs, weights_path)
    with torch.no_grad():
        next(loaded.backbone.parameters()).mul_(1.1)
    with pytest.raises(ArtifactGoldenMismatch):
        check_golden(outputs_of_classifier(loaded, artifact.facts.preprocessing), artifact, blobs)


def test_golden_outputs_reveal_other_preprocessing(
    blobs: BlobStore, classifier: Classifier, weights_path: Path
) -> None:
    artifact = published(blobs, classifier, "head")
    moved = dataclasses.replace(SMALL, mean=(0.5, 0.5, 0.5))
    altered = dataclasses.replace(
        artifact, facts=dataclasses.replace(artifact.facts, preprocessing=moved)
    )
    with pytest.raises(ArtifactGoldenMismatch):
        check_golden(
            outputs_of_classifier(
                load_classifier(artifact, blobs, weights_path), altered.facts.preprocessing
            ),
            altered,
            blobs,
        )


def test_golden_images_hold_no_photograph(blobs: BlobStore, classifier: Classifier) -> None:
    first = read_golden(blobs, published(blobs, classifier, "head"))
    assert first["images"].shape == (2, 64, 64, 3)
    second = read_golden(blobs, published(blobs, classifier, "head", classes=("x", "y", "z")))
    assert np.array_equal(first["images"], second["images"])


def test_a_changed_byte_is_found(blobs: BlobStore, classifier: Classifier) -> None:
    artifact = published(blobs, classifier, "head")
    path = blobs.local_path(artifact.files["model.safetensors"].sha256)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    os.chmod(path, 0o600)  # noqa: PTH101
    path.write_bytes(data)
    with pytest.raises(BlobCorrupt):
        read_artifact(blobs, artifact.digest)


def test_a_missing_file_is_named(blobs: BlobStore, classifier: Classifier) -> None:
    artifact = published(blobs, classifier, "head")
    golden = artifact.files["golden.safetensors"].sha256
    blobs.local_path(golden).unlink()
    with pytest.raises(BlobMissing, match=golden):
        read_artifact(blobs, artifact.digest)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"task": "detection"},
        {"kind": "half"},
        {"classes": []},
        {"classes": ["a", "a"]},
        {"classes": ["a", 1]},
        {"classes": "ab"},
        {"classes": None},
        {"weights": None},
        {"feature_width": 0},
        {"feature_width": "512"},
        {"feature_width": True},
        {"metrics": {"x": "nan"}},
        {"metrics": []},
        {"preprocessing": {}},
        {"files": {}},
        {"files": {"model.safetensors": {}, "golden.safetensors": {}}},
        {"lineage": None},
    ],
)
def test_facts_that_are_no_models_are_refused(
    blobs: BlobStore, classifier: Classifier, change: dict[str, Any]
) -> None:
    artifact = published(blobs, classifier, "head")
    value = json.loads(blobs.read(artifact.digest))
    with pytest.raises(ArtifactMalformed):
        parse_artifact(json.dumps({**value, **change}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_facts_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactMalformed):
        parse_artifact(data)


def test_facts_in_another_form_than_the_canonical_one_are_refused(
    blobs: BlobStore, classifier: Classifier
) -> None:
    artifact = published(blobs, classifier, "head")
    spaced = blobs.put_bytes(json.dumps(json.loads(blobs.read(artifact.digest)), indent=1).encode())
    with pytest.raises(ArtifactMalformed, match="canonical"):
        read_artifact(blobs, spaced.sha256)


@pytest.mark.parametrize("fault", ["nan", "shape", "extra", "dtype", "golden"])
def test_verification_finds_tensors_that_do_not_fit(
    blobs: BlobStore, classifier: Classifier, fault: str
) -> None:
    tensors, golden = tensors_to_publish(classifier, "head"), golden_outputs(classifier, SMALL)
    tensors = {name: array.copy() for name, array in tensors.items()}
    if fault == "nan":
        tensors["head.weight"][0, 0] = np.nan
    elif fault == "shape":
        tensors["head.bias"] = tensors["head.bias"][:2]
    elif fault == "extra":
        tensors["body.weight"] = tensors["head.bias"]
    elif fault == "dtype":
        tensors["head.bias"] = tensors["head.bias"].astype(np.float64)
    else:
        golden["logits"] = golden["logits"][:, :2]
    artifact = write_artifact(blobs, facts("head"), tensors, golden)
    with pytest.raises(ArtifactMalformed):
        verify_artifact(blobs, artifact.digest)


def test_a_file_that_is_no_safetensors_is_refused(blobs: BlobStore, classifier: Classifier) -> None:
    artifact = published(blobs, classifier, "head")
    value = json.loads(blobs.read(artifact.digest))
    value["files"]["model.safetensors"] = blobs.put_bytes(b"\xff" * 64).as_json()
    described = blobs.put_bytes(canonical_json(value))
    with pytest.raises(ArtifactMalformed):
        verify_artifact(blobs, described.sha256)


def test_weights_of_another_network_are_refused(
    blobs: BlobStore, classifier: Classifier, tmp_path: Path
) -> None:
    artifact = published(blobs, classifier, "head")
    other = tmp_path / "other.pth"
    torch.save(build_backbone("mobilenet_v3_small").state_dict(), other)
    with pytest.raises(WeightsKeysMismatch):
        load_classifier(artifact, blobs, other)
    with pytest.raises(ArtifactMalformed):
        load_classifier(artifact, blobs, None)


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "resnet18", "squeezenet1_1"])
def test_the_fast_engine_gives_the_eager_features(architecture: str) -> None:
    torch.manual_seed(0)
    backbone = freeze(build_backbone(architecture), torch.device("cpu"))
    probe = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    engine = choose_engine(backbone, probe, SMALL)
    assert ("folded" in engine.name) == (architecture != "squeezenet1_1")
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    eager = choose_engine(torch.nn.Sequential(backbone), probe, SMALL)
    torch.testing.assert_close(
        engine.features(images, SMALL), eager.features(images, SMALL), rtol=1e-3, atol=1e-3
    )
