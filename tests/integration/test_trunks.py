"""Networks tuned in their last stages share the stages before; what they answer stays theirs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models_cache.answers import ImageOutput, QueuedImage
from models_cache.artifacts import read_artifact
from models_cache.blobs import BlobStore
from models_cache.classifiers import golden_images, load_classifier, outputs_of_classifier
from models_cache.decode import ImageLimits
from models_cache.loaded import Pinned
from models_cache.predictor import Predictor
from models_cache.served_models import Model
from tests.training_jobs import (
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
    write_catalogue,
)

pytestmark = pytest.mark.slow

_ARCHITECTURE = "mobilenet_v3_small"  # BatchNorm: statistics of frozen stages must not move either


@pytest.fixture
def tuned(tmp_path: Path, children: TrainingChildren) -> Callable[[str, int], str]:
    """Fine-tune the last stages; return the artifact of the network, whether better or not."""
    catalogue = write_catalogue(tmp_path / "catalogue", _ARCHITECTURE)

    def train(job_id: str, stages: int) -> str:
        images = {"train": 4 + len(list((tmp_path / "runs").glob("*"))), "val": 3}
        manifest = store_dataset(tmp_path, images)  # other images for each
        parameters = {"tune": stages, "epochs": 2, "ema_decay": 0.9, "batch_size": 4}
        chosen = {"architecture": _ARCHITECTURE, "recipe": "auto", "parameters": parameters}
        spec = training_spec(manifest, catalogue, **chosen)
        job = TrainingJob(tmp_path, job_id, spec)
        assert job.run(children) == 0, job.lines()[-1]
        digest: str = job.result()["artifact"]["digest"]
        return digest

    return train


def predictor_in(folder: Path, cache_bytes: int = 1 << 30) -> Predictor:
    return Predictor(folder, torch.device("cpu"), cache_bytes, ImageLimits())


def logits_of(predictor: Predictor, *models: Model) -> list[np.ndarray]:
    """Show each model the same image, all of them in one batch."""
    image = golden_images(models[0].preprocessing.crop_px)[0]
    queued = [QueuedImage(model, image) for model in models]
    outcomes = predictor.forward(models[0].backbone_key, queued)
    assert all(isinstance(outcome, ImageOutput) for outcome in outcomes)
    return [
        outcome.logits * model.head.temperature
        for outcome, model in zip(outcomes, models, strict=True)
        if isinstance(outcome, ImageOutput)
    ]


def plain_logits(folder: Path, digest: str) -> np.ndarray:
    """Return what the network says that was published, run as it is."""
    blobs = BlobStore(folder / "blobs")
    artifact = read_artifact(blobs, digest)
    classifier = load_classifier(artifact, blobs, None)
    run = outputs_of_classifier(classifier, artifact.facts.preprocessing)
    _, logits = run(golden_images(artifact.facts.preprocessing.crop_px)[:1])
    found: np.ndarray = logits.numpy()[0]
    return found


def test_partly_tuned_networks_share_a_trunk_and_answer_as_if_alone(
    tuned: Callable[[str, int], str], tmp_path: Path
) -> None:
    digests = [tuned("job_a", 2), tuned("job_b", 2)]
    deeper, whole = tuned("job_c", 4), tuned("job_d", 99)
    predictor = predictor_in(tmp_path)
    first, second = (predictor.pin(digest).value for digest in digests)
    assert first.backbone.trunk is not None
    assert first.backbone.trunk is second.backbone.trunk
    assert first.backbone_key == second.backbone_key
    assert first.head.backbone_key != second.head.backbone_key

    # In either order, and with one that has two images
    mixed = logits_of(predictor, first, second, first)
    assert not np.allclose(mixed[0], mixed[1], rtol=1e-2)  # they are different networks
    for found, digest in zip(mixed, [*digests, digests[0]], strict=True):
        np.testing.assert_allclose(found, plain_logits(tmp_path, digest), rtol=1e-3)

    with predictor.pin(deeper) as model:
        assert model.backbone.trunk is not None
        assert model.backbone_key != first.backbone_key
        (found,) = logits_of(predictor, model)
        np.testing.assert_allclose(found, plain_logits(tmp_path, deeper), rtol=1e-3)
    with predictor.pin(whole) as model:
        assert model.backbone.trunk is None
        (found,) = logits_of(predictor, model)
        np.testing.assert_allclose(found, plain_logits(tmp_path, whole), rtol=1e-3)


def test_a_trunk_is_in_memory_once_and_goes_with_the_last_that_needs_it(
    tuned: Callable[[str, int], str], tmp_path: Path
) -> None:
    digests = [tuned("job_a", 2), tuned("job_b", 2)]
    weights = next((tmp_path / "weights").glob("*.pth"))

    predictor = predictor_in(tmp_path, cache_bytes=1)  # only what is in use, or was last
    pinned: list[Pinned[Model]] = [predictor.pin(digest) for digest in digests]
    trunk = predictor.occupancy()["trunk"]
    own = sum(pin.value.backbone.engine.size_bytes for pin in pinned)
    assert trunk.count == trunk.loads == 1
    assert 0 < trunk.loaded_bytes < weights.stat().st_size
    status = predictor.status()
    assert status["loaded_trunks"] == 1
    assert own < status["loaded_bytes"] < 2 * weights.stat().st_size

    pinned[0].release()
    gc.collect()
    assert predictor.occupancy()["trunk"].count == 1
    whole = tuned("job_c", 99)
    pinned[1].release()
    del pinned
    with predictor.pin(whole):
        gc.collect()
        trunk = predictor.occupancy()["trunk"]
        assert (trunk.count, trunk.loaded_bytes, trunk.evictions) == (0, 0, 1)


def test_without_the_pretrained_file_a_partly_tuned_network_is_served_whole(
    tuned: Callable[[str, int], str], tmp_path: Path
) -> None:
    digest = tuned("job_a", 2)
    for file in (tmp_path / "weights").glob("*.pth"):
        file.unlink()
    predictor = predictor_in(tmp_path)
    with predictor.pin(digest) as model:
        assert model.backbone.trunk is None
        (found,) = logits_of(predictor, model)
    np.testing.assert_allclose(found, plain_logits(tmp_path, digest), rtol=1e-3)
