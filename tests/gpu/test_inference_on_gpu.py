"""Serving on a CUDA device: the predictor and the batcher without the web packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models_cache.answers import ImageOutput, QueuedImage
from models_cache.artifacts import Artifact, ArtifactFacts, write_artifact
from models_cache.backbones import Classifier, build_backbone, feature_width
from models_cache.batching import Batcher
from models_cache.blobs import BlobStore
from models_cache.classifiers import golden_outputs, tensors_to_publish
from models_cache.decode import ImageLimits
from models_cache.devices import choose_device
from models_cache.durable import sha256_of_file
from models_cache.predictor import Predictor
from models_cache.preprocessing import Preprocessing
from models_cache.served_models import BackboneKey

pytestmark = pytest.mark.gpu

DEADLINE_SECONDS = 60
ARCHITECTURE = "resnet18"
PREPROCESSING = Preprocessing()
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("data")
    (folder / "weights").mkdir()
    torch.save(build_backbone(ARCHITECTURE).state_dict(), folder / "weights" / "random.pth")
    return folder


def publish(data_folder: Path, seed: int) -> Artifact:
    """Write the artifact of a random head, with golden outputs made on the CPU."""
    path = data_folder / "weights" / "random.pth"
    width = feature_width(ARCHITECTURE)
    backbone = build_backbone(ARCHITECTURE, weights_path=path, has_head=False)
    classifier = Classifier(backbone, width, 3).eval()
    with torch.no_grad():
        torch.manual_seed(seed)
        classifier.head.weight.normal_()
    facts = ArtifactFacts(
        task="classification",
        architecture=ARCHITECTURE,
        kind="head",
        weights={
            "name": "RANDOM",
            "file": path.name,
            "sha256": sha256_of_file(path),
            "has_head": False,
        },
        preprocessing=PREPROCESSING,
        classes=("a", "b", "c"),
        feature_width=width,
    )
    return write_artifact(
        BlobStore(data_folder / "blobs"),
        facts,
        tensors_to_publish(classifier, "head"),
        golden_outputs(classifier, PREPROCESSING),
    )


def predictor_on(device: str, data_folder: Path) -> Predictor:
    return Predictor(data_folder, choose_device(device), 1 << 30, ImageLimits())


def noise(images: int) -> list[Pixels]:
    crop = PREPROCESSING.crop_px
    pixels: Pixels = np.random.default_rng(0).integers(
        0, 256, (images, crop, crop, 3), dtype=np.uint8
    )
    return list(pixels)


def predict(predictor: Predictor, digests: list[str], images: list[Pixels]) -> torch.Tensor:
    """Return scores float32 `[N, C]`, one model per image, all of them in one batch."""
    models = [predictor.pin(digest).value for digest in digests]
    queued = [QueuedImage(model, pixels) for model, pixels in zip(models, images, strict=True)]
    outcomes = predictor.forward(models[0].backbone_key, queued)
    scores = [found.scores for found in outcomes if isinstance(found, ImageOutput)]
    return torch.from_numpy(np.stack(scores))


def test_a_model_made_on_a_cpu_is_accepted_and_answers_the_same_on_cuda(data_folder: Path) -> None:
    digest, images = publish(data_folder, 1).digest, noise(16)
    on_cpu, on_cuda = (
        predict(predictor_on(device, data_folder), [digest] * 16, images)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-3, rtol=0)


def test_models_that_share_a_batch_on_cuda_answer_as_if_alone(data_folder: Path) -> None:
    digests, images = [publish(data_folder, seed).digest for seed in (1, 2)] * 8, noise(16)
    predictor = predictor_on("cuda", data_folder)
    together = predict(predictor, digests, images)
    assert predictor.status()["mixed_batches"] == 1
    assert len(predictor.status()["loaded"]) == 1
    alone = [predict(predictor, [d], [i]) for d, i in zip(digests, images, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_a_batch_beyond_the_memory_of_the_device_is_answered_in_parts(data_folder: Path) -> None:
    predictor, images = predictor_on("cuda", data_folder), noise(128)
    model = predictor.pin(publish(data_folder, 1).digest).value
    key, count = model.backbone_key, len(images)
    predictor.forward(key, [QueuedImage(model, images[0])])  # what one image needs is there
    torch.cuda.empty_cache()
    bound = (torch.cuda.memory_reserved() + (200 << 20)) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(bound)
    batcher = Batcher[BackboneKey, QueuedImage, ImageOutput](predictor.forward, count, count)
    try:
        answers = [batcher.submit(key, "me", QueuedImage(model, pixels)) for pixels in images]
        batcher.start()
        sizes = {answer.result(DEADLINE_SECONDS).batch_images for answer in answers}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        batcher.close()
    assert max(sizes) < count
