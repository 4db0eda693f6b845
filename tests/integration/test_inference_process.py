"""The real inference process over its real socket, with real artifacts of a random backbone."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from models_cache import wire
from models_cache.answers import ImageOutput, QueuedImage
from models_cache.artifacts import Artifact, ArtifactFacts, tensor_bytes, write_artifact
from models_cache.asgi import MAX_UNIX_PATH_BYTES, listen
from models_cache.backbones import build_backbone, feature_width
from models_cache.blobs import BlobStore
from models_cache.calibration import Calibration, Level
from models_cache.classifiers import golden_images
from models_cache.decode import ImageLimits, center_crop, decode_rgb, resize_shorter_side
from models_cache.durable import sha256_of_file
from models_cache.engines import FOLDED, choose_engine
from models_cache.errors import (
    ArtifactGoldenMismatch,
    InferenceAddressInvalid,
    ModelUnhealthy,
)
from models_cache.features import normalised
from models_cache.inference import InferenceApp, InferenceConfig
from models_cache.novelty import fit_familiarity, judge
from models_cache.predictor import Predictor
from models_cache.preprocessing import Preprocessing
from tests.images import encode

DEADLINE_SECONDS = 60
ARCHITECTURE = "squeezenet1_1"
PREPROCESSING = Preprocessing(resize_px=96, crop_px=80)
FOLDS = torch.arange(60) % 5
START = """
import json, sys
from pathlib import Path
from models_cache.inference import InferenceConfig, serve
options = json.loads(sys.argv[2])
serve(InferenceConfig(data_folder=Path(sys.argv[1]), threads=1, device="cpu", **options))
"""


class SlowFile:
    """A pipe in the place of a file: whoever reads it waits until `answer`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path.with_suffix(".aside")
        self._writer = -1
        path.rename(self._aside)
        os.mkfifo(path)

    def is_read(self) -> bool:
        """Tell whether somebody waits for it."""
        if self._writer < 0 and self._aside.exists():
            with suppress(OSError):  # there is no reader
                self._writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        return self._writer >= 0

    def answer(self, last: bool = True) -> None:
        """Give the content to the one who reads; the next one waits again, or reads the file."""
        if not self._aside.exists():
            return
        is_read, data = self.is_read(), self._aside.read_bytes()
        self._path.unlink()
        if last:
            self._aside.rename(self._path)
        else:
            os.mkfifo(self._path)
        if is_read:
            os.set_blocking(self._writer, True)
            with os.fdopen(self._writer, "wb") as writer:
                writer.write(data)
            self._writer = -1


class Folder:
    """A data folder with one random backbone and artifacts made from it."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.root = root
        self.blobs = BlobStore(root / "blobs")
        self.backbone: nn.Module = build_backbone(ARCHITECTURE).eval()
        weights = root / "weights"
        weights.mkdir()
        torch.save(self.backbone.state_dict(), weights / "random.pth")
        self.golden_images = golden_images(PREPROCESSING.crop_px)
        with torch.inference_mode():
            pixels = torch.from_numpy(self.golden_images)
            features = self.backbone(normalised(pixels, PREPROCESSING))
            self.golden_features: NDArray[np.float32] = features.numpy()
        self.weights_sha256 = sha256_of_file(weights / "random.pth")

    def publish(
        self,
        seed: int,
        whole: bool = False,
        golden_error: float = 0.0,
        documents: dict[str, bytes] | None = None,
        **facts: object,
    ) -> Artifact:
        """Write the artifact of a random head; its stored logits are off by `golden_error`."""
        classes = ("ant", "bee", f"cat-{seed}")
        head = self.head(seed, len(facts.get("classes", classes)))  # type: ignore[arg-type]
        state = {f"backbone.{k}": v.numpy() for k, v in self.backbone.state_dict().items()}
        golden = self._golden(head)
        golden["logits"] += np.float32(golden_error)
        description = ArtifactFacts(
            task="classification",
            architecture=ARCHITECTURE,
            kind="whole" if whole else "head",
            weights={
                "name": "RANDOM",
                "file": "random.pth",
                "sha256": self.weights_sha256,
                "has_head": False,
            },
            preprocessing=PREPROCESSING,
            classes=classes,
            feature_width=feature_width(ARCHITECTURE),
        )
        return write_artifact(
            self.blobs,
            replace(description, **facts),  # type: ignore[arg-type]  # facts of the test's choosing
            head | state if whole else head,
            golden,
            documents,
        )

    def features(self, images: Sequence[bytes]) -> torch.Tensor:
        """Return what the backbone makes of encoded images, float32 `[N, D]`."""
        crops = [
            center_crop(resize_shorter_side(decode_rgb(i), PREPROCESSING.resize_px, "bilinear"), 80)
            for i in images
        ]
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(crops))
            found: torch.Tensor = self.backbone(normalised(pixels, PREPROCESSING))
        return found

    def head(self, seed: int, classes: int = 3) -> dict[str, NDArray[np.float32]]:
        """Draw a head that tells images apart: a random network's features are nearly parallel."""
        weight = np.random.default_rng(seed).normal(0, 20, (classes, feature_width(ARCHITECTURE)))
        common = self.golden_features.mean(axis=0)
        weight -= np.outer(weight @ common, common) / (common @ common)
        bias = np.linspace(0, 0.2, classes, dtype=np.float32)
        return {"head.weight": weight.astype(np.float32), "head.bias": bias}

    @contextmanager
    def slow_disk(self, artifact: Artifact, file: str) -> Iterator[SlowFile]:
        """Let reads of an artifact's file wait until the yielded one answers, or for the block."""
        slow = SlowFile(self.blobs.local_path(artifact.files[file].sha256))
        try:
            yield slow
        finally:
            slow.answer()

    def _golden(self, head: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        logits = self.golden_features @ head["head.weight"].T + head["head.bias"]
        features, images = self.golden_features, self.golden_images
        return {"images": images, "features": features, "logits": logits}


class Process:
    """A running inference process and a client of its socket."""

    def __init__(self, folder: Path, socket_path: Path, **options: object) -> None:
        self.socket_path = socket_path
        options = {"bind": f"unix://{socket_path}", **options}
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", START, str(folder), json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.client = self.new_client()
        until(self._answers, "the inference process did not start")

    def new_client(self) -> httpx2.Client:
        transport = httpx2.HTTPTransport(
            uds=str(self.socket_path), limits=httpx2.Limits(max_connections=100)
        )
        return httpx2.Client(
            transport=transport, base_url="http://inference", timeout=DEADLINE_SECONDS
        )

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/healthz").raise_for_status().json()
        return answer

    def predict(
        self,
        digest: str,
        images: Sequence[bytes],
        top_k: int | None = None,
        max_error: object = None,
        **switches: object,
    ) -> httpx2.Response:
        header = {"artifact": digest, "top_k": top_k, "max_error": max_error, **switches}
        frame = wire.encode(header, images)
        return self.client.post("/predict", content=frame)

    def scores(self, digest: str, image: bytes) -> dict[str, float]:
        answer = self.predict(digest, [image]).raise_for_status().json()
        return {s["label"]: s["score"] for s in answer["predictions"][0]["scores"]}

    def stop(self) -> tuple[int, bytes]:
        """End the process with SIGTERM; return its exit status and what it printed."""
        self.client.close()
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            output, _ = self.child.communicate(timeout=DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise
        return self.child.returncode, output

    def _answers(self) -> bool:
        assert self.child.poll() is None, self.child.communicate()[0].decode()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0


def until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def photograph(seed: int, width_px: int = 160, height_px: int = 120) -> bytes:
    """Return a JPEG of a random gradient: every seed looks different to the network."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width_px, height_px), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def noise(seed: int) -> bytes:
    """Return a PNG of noise: all of them look nearly the same to the network."""
    pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def process(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(folder.root, tmp_path_factory.mktemp("run") / "inference.sock")
    yield process
    status, output = process.stop()
    assert (status, output.decode()) == (0, "")


def test_concurrent_requests_of_two_models_share_batches_and_answer_as_if_alone(
    folder: Folder, process: Process
) -> None:
    digests = [folder.publish(seed).digest for seed in (1, 2)]
    requests = [(digests[n % 2], photograph(n)) for n in range(64)]
    alone = [process.scores(*request) for request in requests]
    assert len(process.health()["loaded"]) == 1
    mixed_before = process.health()["mixed_batches"]
    with ThreadPoolExecutor(64) as clients:
        together = list(clients.map(lambda request: process.scores(*request), requests))
    for expected, actual in zip(alone, together, strict=True):
        assert actual == pytest.approx(expected, abs=1e-4)
    assert process.health()["mixed_batches"] > mixed_before
    assert len({round(scores["ant"], 4) for scores in alone[::2]}) > 8


def test_scores_equal_the_plain_network_on_the_preprocessed_image(
    folder: Folder, process: Process
) -> None:
    file = io.BytesIO()  # the shorter side is right already: no resize comes in between
    pixels = np.pad(folder.golden_images[0], [(8, 8), (8, 8), (0, 0)])
    Image.fromarray(pixels).save(file, "PNG")
    artifact, head = folder.publish(1), folder.head(1)
    logits = folder.golden_features[0] @ head["head.weight"].T + head["head.bias"]
    expected = torch.from_numpy(logits).softmax(0).tolist()
    scores = process.scores(artifact.digest, file.getvalue())
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert [scores[name] for name in artifact.facts.classes] == pytest.approx(expected, abs=1e-4)


def test_a_photograph_is_resized_and_cropped_as_training_does(
    folder: Folder, process: Process
) -> None:
    image, head = photograph(7, 333, 211), folder.head(1)
    resized = resize_shorter_side(decode_rgb(image), PREPROCESSING.resize_px, "bilinear")
    pixels = torch.from_numpy(center_crop(resized, PREPROCESSING.crop_px))
    with torch.inference_mode():
        features = folder.backbone(normalised(pixels[None], PREPROCESSING))[0].numpy()
    logits = features @ head["head.weight"].T + head["head.bias"]
    artifact = folder.publish(1)
    scores = process.scores(artifact.digest, image)
    expected = torch.from_numpy(logits).softmax(0).tolist()
    assert [scores[name] for name in artifact.facts.classes] == pytest.approx(expected, abs=1e-4)


def test_a_tensor_that_a_client_preprocessed_is_answered_like_its_image(
    folder: Folder, process: Process
) -> None:
    images = [photograph(seed) for seed in (1, 2, 3)]
    digest = folder.publish(1, calibration=Calibration(4.0, "val", 100, 0.95, ())).digest
    expected = process.predict(digest, images, logits=True).json()["predictions"]
    tensors = []
    for image in images:
        resized = resize_shorter_side(decode_rgb(image), PREPROCESSING.resize_px, "bilinear")
        pixels = torch.from_numpy(center_crop(resized, PREPROCESSING.crop_px))[None]
        tensors.append(normalised(pixels, PREPROCESSING).contiguous().numpy().tobytes())
    found = process.predict(digest, tensors, logits=True, preprocessed=True).json()["predictions"]
    for one, other in zip(expected, found, strict=True):
        assert other["logits"] == pytest.approx(one["logits"], abs=1e-4)
        scores = {score["label"]: score["score"] for score in other["scores"]}
        made_of = torch.tensor(other["logits"]).softmax(0).tolist()
        assert list(scores.values()) == pytest.approx(sorted(made_of, reverse=True), abs=1e-6)
        assert other["ood_score"] == one["ood_score"]


def test_a_tensor_of_another_size_or_with_nan_fails_alone(folder: Folder, process: Process) -> None:
    good = np.zeros((3, PREPROCESSING.crop_px, PREPROCESSING.crop_px), "<f4")
    sick = good.copy()
    sick[1, 2, 3] = np.nan
    tensors = [good.tobytes(), good.tobytes()[:-4], sick.tobytes()]
    answer = process.predict(folder.publish(1).digest, tensors, preprocessed=True).json()
    fine, short, infinite = answer["predictions"]
    assert len(fine["scores"]) == 3
    assert short["error"]["code"] == infinite["error"]["code"] == "unusable-tensor"
    assert "76800 bytes" in short["error"]["message"]


def test_a_model_with_outputs_that_are_not_finite_does_not_spoil_the_batch(folder: Folder) -> None:
    predictor = Predictor(folder.root, torch.device("cpu"), 1 << 30, ImageLimits())
    healthy, sick = (predictor.pin(folder.publish(seed).digest).value for seed in (1, 2))
    sick.head.bias.fill(float("nan"))
    pixels = folder.golden_images[0]
    images = [QueuedImage(model, pixels) for model in (healthy, sick, healthy)]
    first, failed, last = predictor.forward(healthy.backbone_key, images)
    assert isinstance(failed, ModelUnhealthy)
    assert failed.digest == sick.head.artifact.digest
    assert isinstance(first, ImageOutput)
    assert isinstance(last, ImageOutput)
    np.testing.assert_allclose(first.scores, last.scores, rtol=1e-6)


def test_scores_are_divided_by_the_temperature_and_the_order_stays(
    folder: Folder, process: Process
) -> None:
    image, plain = photograph(3), folder.publish(1)
    warm = folder.publish(1, calibration=Calibration(4.0, "val", 100, 0.95, ()))
    cold, tempered = (process.scores(artifact.digest, image) for artifact in (plain, warm))
    assert list(cold) == list(tempered)
    logits = torch.tensor(list(cold.values())).log()
    assert list(tempered.values()) == pytest.approx((logits / 4).softmax(0).tolist(), abs=1e-4)


def test_a_model_abstains_where_it_cannot_keep_the_error_budget(
    folder: Folder, process: Process
) -> None:
    images = [photograph(seed) for seed in range(12)]
    best = [max(process.scores(folder.publish(1).digest, image).values()) for image in images]
    middle = float(np.median(best))
    levels = (Level(0.5, middle, 0.0, 0.04), Level(1.0, 0.0, 0.1, 0.2))
    digest = folder.publish(1, calibration=Calibration(1.0, "val", 100, 0.95, levels)).digest

    def asked(max_error: float | None) -> dict[str, Any]:
        answer = process.predict(digest, images, max_error=max_error).raise_for_status().json()
        return dict(answer)

    free = asked(None)
    assert free["abstention"] is None
    assert not any(prediction["abstained"] for prediction in free["predictions"])
    strict = asked(0.05)
    assert strict["abstention"]["threshold"] == middle
    assert strict["abstention"]["coverage"] == 0.5
    abstained = [prediction["abstained"] for prediction in strict["predictions"]]
    assert abstained == [score <= middle for score in best]
    assert not any(prediction["abstained"] for prediction in asked(0.5)["predictions"])
    impossible = asked(0.001)
    assert impossible["abstention"]["threshold"] is None
    assert all(prediction["abstained"] for prediction in impossible["predictions"])
    uncalibrated = process.predict(folder.publish(1).digest, images, max_error=0.5).json()
    assert all(prediction["abstained"] for prediction in uncalibrated["predictions"])


def test_images_unlike_the_known_ones_are_called_out_of_distribution(
    folder: Folder, process: Process
) -> None:
    familiarity = fit_familiarity(folder.features([noise(seed) for seed in range(60)]), FOLDS)
    assert familiarity is not None
    documents = {"familiarity.safetensors": tensor_bytes(familiarity.arrays())}
    digest = folder.publish(1, documents=documents).digest
    images = [noise(1000), photograph(7)]
    known, unknown = process.predict(digest, images).raise_for_status().json()["predictions"]
    assert 0 <= known["ood_score"] < unknown["ood_score"] == 1.0
    assert unknown["out_of_distribution"]
    assert unknown["abstained"]
    expected, _ = judge([familiarity] * 2, folder.features(images).numpy())
    assert [known["ood_score"], 1.0] == pytest.approx(expected.tolist(), abs=0.05)
    unaware = process.predict(folder.publish(1).digest, images).json()["predictions"]
    assert [prediction["ood_score"] for prediction in unaware] == [None, None]


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 255, 255), (120, 80, 40)])
def test_a_picture_of_one_colour_is_out_of_distribution_whatever_is_known(
    folder: Folder, process: Process, colour: tuple[int, int, int]
) -> None:
    plain = encode(np.full((64, 64, 3), colour, np.uint8))
    line = np.full((64, 64, 3), colour, np.uint8)
    line[:, 20:30] = 255 - line[:, 20:30] // 2
    familiarity = fit_familiarity(folder.features([noise(seed) for seed in range(60)]), FOLDS)
    assert familiarity is not None
    documents = {"familiarity.safetensors": tensor_bytes(familiarity.arrays())}
    digest = folder.publish(1, documents=documents).digest
    blank, drawn = process.predict(digest, [plain, encode(line)]).json()["predictions"]
    assert (blank["ood_score"], blank["out_of_distribution"], blank["abstained"]) == (1, True, True)
    expected, _ = judge([familiarity], folder.features([encode(line)]).numpy())
    assert drawn["ood_score"] == pytest.approx(float(expected[0]), abs=0.05)  # by its features
    (unaware,) = process.predict(folder.publish(1).digest, [plain]).json()["predictions"]
    assert (unaware["ood_score"], unaware["out_of_distribution"]) == (None, False)


def test_an_error_budget_that_is_no_fraction_is_refused(folder: Folder, process: Process) -> None:
    for wrong in (0, 1, 1.5, -0.1, "0.1", True):
        answer = process.predict(folder.publish(1).digest, [photograph(1)], max_error=wrong)
        assert answer.status_code == 400, wrong


def test_a_whole_artifact_has_its_own_backbone_and_the_same_answers(
    folder: Folder, process: Process
) -> None:
    head, whole = folder.publish(3), folder.publish(3, whole=True)
    image = photograph(0)
    assert process.scores(whole.digest, image) == pytest.approx(
        process.scores(head.digest, image), abs=1e-4
    )
    assert whole.files["model.safetensors"].sha256 in {
        backbone["sha256"] for backbone in process.health()["loaded"]
    }


def test_an_image_that_cannot_be_decoded_fails_alone(folder: Folder, process: Process) -> None:
    digest = folder.publish(1).digest
    good = photograph(1)
    answer = process.predict(digest, [good, b"no image", good[: len(good) // 2], good], top_k=2)
    assert answer.status_code == 200
    first, noise, cut, last = answer.json()["predictions"]
    assert noise["error"]["code"] == cut["error"]["code"] == "unreadable-image"
    assert [s["label"] for s in first["scores"]] == [s["label"] for s in last["scores"]]
    assert len(first["scores"]) == 2
    assert answer.json()["timing"].keys() == {"decode_ms", "queue_ms", "forward_ms", "batch_size"}


def test_an_image_beyond_the_pixel_limit_fails_alone(folder: Folder, tmp_path: Path) -> None:
    process = Process(folder.root, tmp_path / "s", max_image_pixels=160 * 120)
    images = [photograph(1, width_px=161), photograph(1)]
    large, small = process.predict(folder.publish(1).digest, images).json()["predictions"]
    assert large["error"]["code"] == "image-too-large"
    assert "scores" in small
    process.stop()


@pytest.mark.parametrize(("top_k", "count"), [(None, 3), (1, 1), (3, 3), (10**30, 3)])
def test_as_many_scores_as_asked_for_are_returned(
    folder: Folder, process: Process, top_k: int | None, count: int
) -> None:
    answer = process.predict(folder.publish(1).digest, [photograph(1)], top_k).json()
    assert len(answer["predictions"][0]["scores"]) == count


def test_no_image_is_no_prediction(folder: Folder, process: Process) -> None:
    answer = process.predict(folder.publish(1).digest, [])
    assert answer.status_code == 200
    assert answer.json()["predictions"] == []


def test_an_artifact_that_is_not_there_is_404_and_one_without_weights_503(
    folder: Folder, process: Process
) -> None:
    answer = process.predict("0" * 64, [photograph(1)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "blob-missing")
    for file in ("gone.pth", "..", "", "../../blobs"):
        weights = {"name": "GONE", "file": file, "sha256": "1" * 64, "has_head": False}
        answer = process.predict(folder.publish(1, weights=weights).digest, [photograph(1)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "weights-unavailable")
        assert answer.headers["retry-after"] == "1"


def test_weights_that_changed_on_disk_are_not_loaded(folder: Folder, process: Process) -> None:
    path = folder.root / "weights" / "changed.pth"
    path.write_bytes((folder.root / "weights" / "random.pth").read_bytes() + b"x")
    weights = {"name": "X", "file": "changed.pth", "sha256": "2" * 64, "has_head": False}
    answer = process.predict(folder.publish(1, weights=weights).digest, [photograph(1)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "weights-hash-mismatch")


@pytest.mark.parametrize("whole", [False, True])
def test_a_model_that_does_not_give_its_stored_outputs_is_not_served(
    folder: Folder, process: Process, whole: bool
) -> None:
    artifact = folder.publish(4, whole=whole, golden_error=0.5)
    for _ in range(2):
        answer = process.predict(artifact.digest, [photograph(1)])
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "artifact-golden-mismatch"


def test_a_damaged_artifact_is_not_served(folder: Folder, process: Process) -> None:
    artifact = folder.publish(5)
    path = folder.blobs.local_path(artifact.files["model.safetensors"].sha256)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    answer = process.predict(artifact.digest, [photograph(1)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "blob-corrupt")


def test_loading_ahead_makes_the_first_prediction_find_its_model(
    folder: Folder, process: Process
) -> None:
    digest = folder.publish(6).digest
    heads = process.health()["loaded_heads"]
    answer = process.client.post("/load", json={"artifact": digest})
    assert answer.status_code == 200
    assert answer.json()["artifact"] == digest
    assert process.health()["loaded_heads"] == heads + 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", b""),
        ("/predict", b"GRFT" + bytes(100)),
        ("/predict", wire.encode({"artifact": "short"}, [b"x"])),
        ("/predict", wire.encode({"artifact": "0" * 64, "top_k": 0}, [b"x"])),
        ("/predict", wire.encode({"artifact": "0" * 64, "top_k": True}, [b"x"])),
        ("/predict", wire.encode({"artifact": "0" * 64}, [b"x"] * 513)),
        ("/predict", wire.encode({"artifact": "0" * 64, "timeout_seconds": 0}, [b"x"])),
        ("/load", b"{"),
        ("/load", b"[]"),
        ("/load", b'{"artifact": 1e999}'),
        ("/load", b"[" * 4000),
        ("/load", b'{"artifact": "' + b"g" * 64 + b'"}'),
        ("/nothing", b""),
    ],
)
def test_a_malformed_call_is_400(process: Process, path: str, body: bytes) -> None:
    answer = process.client.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wire-malformed")


def test_a_body_beyond_the_limit_is_413_declared_or_not(folder: Folder, tmp_path: Path) -> None:
    process = Process(folder.root, tmp_path / "s", max_request_bytes=1000)
    chunk = bytes(1 << 20)
    declared = process.client.post("/predict", content=chunk + bytes(2000))
    undeclared = process.client.post("/predict", content=iter([chunk, chunk]))
    for answer in (declared, undeclared):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "predict-too-large")
    process.stop()


def test_more_images_than_are_accepted_are_refused_at_once(folder: Folder, tmp_path: Path) -> None:
    process = Process(folder.root, tmp_path / "s", max_accepted_images=24)
    digest = folder.publish(1).digest
    process.predict(digest, [photograph(0)]).raise_for_status()
    images = [photograph(n, 1600, 1200) for n in range(12)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: process.predict(digest, images), range(16)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    facts = refused.json()["error"]["facts"]
    assert (facts["queued"], facts["limit"]) == (12, 24)
    assert facts["retry_after_seconds"] >= 1
    until(lambda: process.health()["accepted_images"] == 0, "room was not given back")
    process.predict(digest, images).raise_for_status()
    process.stop()


def test_what_is_not_ready_in_time_is_dropped_and_said_so(folder: Folder, tmp_path: Path) -> None:
    process = Process(folder.root, tmp_path / "s")
    digest = folder.publish(1).digest
    process.predict(digest, [photograph(0)]).raise_for_status()
    images = [photograph(n, 1600, 1200) for n in range(64)]
    frame = wire.encode({"artifact": digest, "timeout_seconds": 0.05}, images)
    late = process.client.post("/predict", content=frame)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "predict-timed-out")
    until(lambda: process.health()["accepted_images"] == 0, "room was not given back")
    assert process.health()["images"] < 1 + len(images)
    frame = wire.encode({"artifact": digest, "timeout_seconds": 60}, images)
    process.client.post("/predict", content=frame).raise_for_status()
    process.stop()


def test_a_model_that_floods_the_process_does_not_starve_another(
    folder: Folder, tmp_path: Path
) -> None:
    process = Process(folder.root, tmp_path / "s", max_accepted_images=96, max_batch_images=4)
    flooding, other = (folder.publish(seed).digest for seed in (1, 2))
    for digest in (flooding, other):
        process.predict(digest, [photograph(0)]).raise_for_status()
    images, stop = [photograph(n, 800, 600) for n in range(8)], threading.Event()

    def flood(_: int) -> set[int]:
        found = set()
        while not stop.is_set():
            found.add(process.predict(flooding, images).status_code)
        return found

    with ThreadPoolExecutor(16) as clients:
        floods = [clients.submit(flood, n) for n in range(16)]
        try:
            until(lambda: process.health()["accepted_images"] >= 40, "there is no flood")
            answers = [process.predict(other, images) for _ in range(5)]
        finally:
            stop.set()
        statuses = {status for each in floods for status in each.result(DEADLINE_SECONDS)}
    assert {answer.status_code for answer in answers} == {200}
    assert statuses == {200, 503}  # more than its share, and told so
    process.stop()


def test_the_work_of_a_client_that_hung_up_is_dropped(folder: Folder, process: Process) -> None:
    digest = folder.publish(1).digest
    process.scores(digest, photograph(1))
    images_before = process.health()["images"]
    frame = wire.encode({"artifact": digest}, [photograph(n, 1600, 1200) for n in range(128)])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(process.socket_path))
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(frame)}\r\n\r\n"
        connection.sendall(head.encode() + frame)
        until(lambda: process.health()["accepted_images"] == 128, "it was not accepted")
    until(lambda: process.health()["accepted_images"] == 0, "its room was not given back")
    process.scores(digest, photograph(1))
    assert process.health()["images"] < images_before + 100


def other_is_served_while_they_wait(
    process: Process,
    clients: ThreadPoolExecutor,
    other: Artifact,
    waiting: Sequence[Future[Any]],
    slow_file: SlowFile,
) -> None:
    """Hold that a model answers while requests wait for a slow file, and these once it is read."""
    until(lambda: process.health()["waiting_images"] == len(waiting), "the requests did not arrive")
    loading = clients.submit(process.predict, other.digest, [photograph(1)])
    try:
        assert loading.result(DEADLINE_SECONDS / 4).status_code == 200
        assert not any(request.done() for request in waiting)
    finally:
        slow_file.answer()
    assert {request.result(DEADLINE_SECONDS).status_code for request in waiting} == {200}


def test_a_slow_load_holds_up_no_other_however_many_wait_for_it(
    folder: Folder, process: Process
) -> None:
    slow, other = folder.publish(20), folder.publish(21, whole=True)
    with folder.slow_disk(slow, "model.safetensors") as slow_file, ThreadPoolExecutor(9) as clients:
        waiting = [clients.submit(process.predict, slow.digest, [photograph(1)]) for _ in range(8)]
        other_is_served_while_they_wait(process, clients, other, waiting, slow_file)


def test_models_that_wait_for_one_backbone_hold_up_no_other(folder: Folder, tmp_path: Path) -> None:
    family = [folder.publish(seed) for seed in range(30, 38)]
    first, *rest = family
    other = folder.publish(38, whole=True)
    # The backbone is loaded from the model that asked first
    process = Process(folder.root, tmp_path / "s")
    with (
        folder.slow_disk(first, "model.safetensors") as slow_file,
        ThreadPoolExecutor(9) as clients,
    ):
        waiting = [clients.submit(process.predict, first.digest, [photograph(1)])]
        until(slow_file.is_read, "the backbone is not being loaded")
        waiting += [clients.submit(process.predict, a.digest, [photograph(1)]) for a in rest]
        other_is_served_while_they_wait(process, clients, other, waiting, slow_file)
    process.stop()


def test_images_that_wait_for_a_load_leave_loaded_models_their_room(
    folder: Folder, tmp_path: Path
) -> None:
    warm, slow = folder.publish(1), folder.publish(22)
    process = Process(folder.root, tmp_path / "s", max_accepted_images=4)
    images = [photograph(n) for n in range(4)]
    process.predict(warm.digest, images).raise_for_status()
    with folder.slow_disk(slow, "model.safetensors") as slow_file, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(process.predict, slow.digest, images)
        until(lambda: process.health()["waiting_images"] == 4, "the request did not arrive")
        try:
            assert process.predict(warm.digest, images).status_code == 200
            refused = process.predict(folder.publish(23).digest, images[:1])
            assert refused.json()["error"]["code"] == "overloaded"
            assert not waiting.done()
        finally:
            slow_file.answer()
        assert waiting.result(DEADLINE_SECONDS).status_code == 200
    assert process.health()["waiting_images"] == 0
    process.stop()


def test_a_head_is_loaded_without_a_forward_pass_and_reads_only_what_it_needs(
    folder: Folder,
) -> None:
    predictor = Predictor(folder.root, torch.device("cpu"), 1 << 30, ImageLimits())
    first = predictor.pin(folder.publish(1).digest).value
    passes: list[int] = []
    hook = first.backbone.engine.forward.register_forward_hook(
        lambda _, __, output: passes.append(len(output))
    )
    second = folder.publish(2, documents={"README.md": b"the card"})
    folder.blobs.local_path(second.files["README.md"].sha256).unlink()
    model = predictor.pin(second.digest).value
    assert model.backbone is first.backbone
    assert passes == []
    with pytest.raises(ArtifactGoldenMismatch):
        predictor.pin(folder.publish(3, golden_error=0.5).digest)
    assert passes == []
    hook.remove()


def test_predictions_go_on_while_a_golden_output_is_read(folder: Folder) -> None:
    predictor = Predictor(folder.root, torch.device("cpu"), 1 << 30, ImageLimits())
    model = predictor.pin(folder.publish(1).digest).value
    slow = folder.publish(24)
    with (
        folder.slow_disk(slow, "golden.safetensors") as slow_file,
        ThreadPoolExecutor(2) as threads,
    ):
        loading = threads.submit(predictor.pin, slow.digest)
        until(slow_file.is_read, "it is not being loaded")
        image = QueuedImage(model, folder.golden_images[0])
        predicting = threads.submit(predictor.forward, model.backbone_key, [image])
        try:
            assert isinstance(predicting.result(DEADLINE_SECONDS / 4)[0], ImageOutput)
            assert not loading.done()
        finally:
            slow_file.answer()
        assert loading.result(DEADLINE_SECONDS).value.head.artifact == slow


class Watched(nn.Parameter):
    """A parameter that tells when it is copied."""

    copied: Callable[[], None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        self.copied()
        copy: Watched = super().__deepcopy__(memo)  # type: ignore[no-untyped-call]
        copy.copied = self.copied
        return copy


def test_a_network_is_copied_and_folded_outside_of_the_lock() -> None:
    lock, held_while_copied, acquired = threading.Lock(), [], []

    @contextmanager
    def exclusive() -> Iterator[None]:
        with lock:
            acquired.append(True)
            yield

    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3)
    weight = Watched(convolution.weight.detach())
    weight.copied = lambda: held_while_copied.append(lock.locked())
    convolution.weight = weight
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(convolution, nn.BatchNorm2d(8), pool).eval()
    probe = torch.from_numpy(golden_images(32))
    engine = choose_engine(network, probe, PREPROCESSING, exclusive)
    assert engine.name == FOLDED
    assert len(acquired) == 3  # the trace and a forward pass of each engine
    assert held_while_copied
    assert not any(held_while_copied)


async def longest_turn(work: asyncio.Task[Any]) -> float:
    """Return the most seconds of CPU that the event loop spent in one go until `work` is done."""
    gc.disable()  # a collection takes as long as the test run has objects, whoever it hits
    try:
        longest, last = 0.0, time.thread_time()
        while not work.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
        return longest
    finally:
        gc.enable()


def test_a_large_answer_is_ranked_and_written_beside_the_event_loop(folder: Folder) -> None:
    artifact = folder.publish(1, classes=tuple(f"class number {n}" for n in range(1000)))
    predictor = Predictor(folder.root, torch.device("cpu"), 1 << 30, ImageLimits())
    app = InferenceApp(predictor, InferenceConfig(folder.root, "unix:///unused", threads=1))
    images = 256
    frame = wire.encode({"artifact": artifact.digest}, [photograph(1)] * images)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def story() -> float:
        lifespan: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        incoming: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        living = asyncio.create_task(app({"type": "lifespan"}, lifespan.get, send))
        lifespan.put_nowait({"type": "lifespan.startup"})
        incoming.put_nowait({"type": "http.request", "body": frame})
        size = (b"content-length", str(len(frame)).encode())
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [size]}
        turn_seconds = await longest_turn(asyncio.create_task(app(scope, incoming.get, send)))
        lifespan.put_nowait({"type": "lifespan.shutdown"})
        await living
        return turn_seconds

    turn_seconds = asyncio.run(story())
    _, start, answer, _ = sent
    assert start["status"] == 200
    predictions = json.loads(answer["body"])["predictions"]
    assert [len(prediction["scores"]) for prediction in predictions] == [1000] * images
    assert turn_seconds < 0.1, turn_seconds


def test_an_eviction_storm_keeps_to_the_bound_and_answers_every_request(
    folder: Folder, tmp_path: Path
) -> None:
    wholes = [folder.publish(seed, whole=True) for seed in (10, 11, 12, 13)]
    size_bytes = sum(t.nbytes for t in folder.backbone.state_dict().values())
    process = Process(folder.root, tmp_path / "s", cache_bytes=int(2.5 * size_bytes))
    image = photograph(3)
    alone = {a.digest: process.scores(a.digest, image) for a in wholes}
    with ThreadPoolExecutor(8) as clients:
        digests = [wholes[n % 4].digest for n in range(40)]
        together = list(clients.map(lambda digest: process.scores(digest, image), digests))
    for digest, scores in zip(digests, together, strict=True):
        assert scores == pytest.approx(alone[digest], abs=1e-4)
    assert process.health()["loaded_bytes"] <= 2.5 * size_bytes
    process.stop()


def test_sigterm_while_requests_are_in_flight_fails_none_of_them(
    folder: Folder, tmp_path: Path
) -> None:
    process = Process(folder.root, tmp_path / "s")
    digest = folder.publish(1).digest
    process.scores(digest, photograph(0))
    images = [photograph(n, 800, 600) for n in range(8)]
    with ThreadPoolExecutor(20) as clients:
        answers: list[Future[httpx2.Response]] = [
            clients.submit(process.predict, digest, images) for _ in range(20)
        ]

        def all_arrived() -> bool:
            accepted = process.health()["accepted_images"]
            return bool(accepted + 8 * sum(answer.done() for answer in answers) >= 160)

        until(all_arrived, "the requests did not arrive")
        assert process.health()["accepted_images"] > 0
        process.child.send_signal(signal.SIGTERM)
        statuses = [answer.result(DEADLINE_SECONDS).status_code for answer in answers]
    assert statuses == [200] * 20
    assert process.stop() == (0, b"")


def test_the_socket_of_a_killed_process_is_taken_over_and_a_live_one_is_not(
    folder: Folder, tmp_path: Path
) -> None:
    first = Process(folder.root, tmp_path / "s")
    with pytest.raises(InferenceAddressInvalid, match="another process"):
        listen(f"unix://{first.socket_path}")
    first.child.kill()
    first.stop()
    second = Process(folder.root, tmp_path / "s")
    assert second.health()["status"] == "ok"
    assert second.socket_path.stat().st_mode & 0o777 == 0o600
    second.stop()


def test_a_socket_path_the_system_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * MAX_UNIX_PATH_BYTES)
    with pytest.raises(InferenceAddressInvalid, match="the system allows 107"):
        listen(f"unix://{path}")


@pytest.mark.parametrize(
    "bind", ["", "unix://", "unix://host/path", "ftp://x:1", "http://localhost", "http://x:99999"]
)
def test_an_address_of_another_form_is_refused(bind: str) -> None:
    with pytest.raises(InferenceAddressInvalid):
        listen(bind)


def test_a_port_can_be_listened_at() -> None:
    with listen("http://127.0.0.1:0") as listener:
        assert listener.getsockname()[1] > 0
