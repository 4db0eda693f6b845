"""Training as properties, on drawn images, in real child processes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.datasets.loading import LoadedDataset, load_dataset
from jobs.datasets.manifest import Manifest
from jobs.errors import Diverged, OutOfMemory, TimeLimitTooShort
from jobs.progress import FILE_NAME, ProgressWriter
from jobs.recipes import FinetuneRecipe, ScratchRecipe
from jobs.tasks.classification import Classification
from jobs.training.attempt import train as run_attempt
from jobs.training.averaging import WeightAverage
from jobs.training.device import Numerics
from jobs.training.evaluate import predict_logits
from jobs.training.interruption import Interruption
from jobs.training.loop import Surroundings, TrainingData, fine_tune
from jobs.training.optimizer import build_optimizer
from jobs.training.place import Place
from jobs.training.sources import split_dataset
from jobs.training.spec import TrainSpec
from jobs.training.state import TrainingState
from models_cache.artifacts import Artifact, ArtifactFacts, read_artifact, write_artifact
from models_cache.backbones import Classifier, build_classifier
from models_cache.blobs import BlobStore
from models_cache.classifiers import (
    check_golden,
    golden_outputs,
    load_classifier,
    outputs_of_classifier,
    tensors_to_publish,
)
from models_cache.decode import center_crop, decode_rgb, resize_shorter_side
from models_cache.engines import choose_engine
from models_cache.errors import ArtifactGoldenMismatch
from models_cache.features import normalised
from models_cache.pixels import PixelCache, PixelKey
from tests.training_jobs import (
    ARCHITECTURE,
    REPOSITORY,
    SMALL,
    TrainingChildren,
    TrainingJob,
    store_dataset,
    training_spec,
)
from tests.waiting import until

pytestmark = pytest.mark.slow

CLASSES = ("red", "green")


class Recorder:
    """Keeps what a training reports."""

    def __init__(self) -> None:
        self.measured: list[tuple[int, dict[str, float]]] = []
        self.warnings: list[str] = []
        self.logged: list[str] = []

    def progress(self, unit: str, _done: int, _total: int | None) -> None:
        assert unit == "steps"

    def metrics(
        self,
        step: int,
        metrics: dict[str, float],
        epoch: float | None = None,  # noqa: ARG002
    ) -> None:
        self.measured.append((step, metrics))

    def warning(self, code: str, _message: str) -> None:
        self.warnings.append(code)

    def log(self, message: str) -> None:
        self.logged.append(message)


@pytest.fixture(scope="module")
def real_dataset(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The real photographs, ingested by a real child: data folder and dataset."""
    data_folder = tmp_path_factory.mktemp("real")
    archive = (shared / "data" / "hymenoptera.zip").read_bytes()
    sha256 = BlobStore(data_folder / "blobs").put_bytes(archive).sha256
    job = TrainingJob(data_folder, "job_ingest", {"kind": "ingest", "archive_sha256": sha256})
    command = [sys.executable, "-m", "jobs.datasets.ingest", str(job.next_spec())]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    return data_folder, job.result()["dataset"]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return store_dataset(tmp_path, {"train": 8, "val": 4}, CLASSES)


@pytest.fixture
def job(tmp_path: Path, manifest: Manifest, catalogue: Path) -> Callable[..., TrainingJob]:
    """Make a job of the drawn dataset."""

    def make(job_id: str = "job_1", **different: object) -> TrainingJob:
        return TrainingJob(tmp_path, job_id, training_spec(manifest, catalogue, **different))

    return make


@pytest.fixture
def dataset(tmp_path: Path, manifest: Manifest) -> LoadedDataset:
    return loaded(tmp_path, manifest)


def loaded(data_folder: Path, manifest: Manifest) -> LoadedDataset:
    key = PixelKey(manifest.digest, SMALL.resize_px, SMALL.interpolation)
    cache, blobs = PixelCache(data_folder / "cache" / "pixels"), BlobStore(data_folder / "blobs")
    return load_dataset(blobs, cache, manifest, key, 2, lambda _done, _total: None)


def start_state(recipe: FinetuneRecipe | ScratchRecipe) -> TrainingState:
    torch.manual_seed(0)
    model = build_classifier(ARCHITECTURE, len(CLASSES))
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe)
    average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
    return TrainingState(model, optimizer, average)


def train(
    state: TrainingState,
    dataset: LoadedDataset,
    recipe: FinetuneRecipe | ScratchRecipe,
    interruption: Interruption | None = None,
    task: Classification | None = None,
    save: Callable[[TrainingState], None] = lambda _state: None,
) -> Recorder:
    data = TrainingData(dataset, dataset.indices("train"), dataset.indices("val"), SMALL)
    recorder = Recorder()
    around = Surroundings(1, torch.float32, recorder, interruption or Interruption(None), save)
    fine_tune(state, task or Classification(CLASSES), data, recipe, around)
    return recorder


def recipe(**different: Any) -> FinetuneRecipe:  # noqa: ANN401
    values = {
        "epochs": 2,
        "tune": 99,
        "batch_norm": "eval",
        "batch_size": 8,
        "class_weights": "none",
        **different,
    }
    return FinetuneRecipe(**values)


def artifact_of(job: TrainingJob) -> Artifact:
    result = job.result()
    return read_artifact(BlobStore(job.data_folder / "blobs"), result["artifact"]["digest"])


def test_pixels_of_a_rebuilt_pack_are_those_of_the_predictor(
    tmp_path: Path, manifest: Manifest
) -> None:
    dataset = loaded(tmp_path, manifest)
    assert len(dataset.pixels) == len(manifest.images)
    crops = dataset.center_crops(range(len(manifest.images)), SMALL.crop_px)
    blobs = BlobStore(tmp_path / "blobs")
    for position, entry in enumerate(manifest.images):
        upright = decode_rgb(blobs.read(entry.sha256))
        resized = resize_shorter_side(upright, SMALL.resize_px, SMALL.interpolation)
        assert np.array_equal(center_crop(resized, SMALL.crop_px), crops[position].numpy())


def test_a_head_job_gives_a_model_that_serves_what_was_reported(
    children: TrainingChildren, job: Callable[..., TrainingJob], catalogue: Path
) -> None:
    first = job()
    assert first.run(children) == 0
    result, lines = first.result(), first.lines()
    phases = [line["phase"] for line in lines if line["kind"] == "phase"]
    assert phases == ["weights", "decode", "features", "head", "publish"]
    assert {line["unit"] for line in lines if line["kind"] == "progress"} >= {"images", "penalties"}
    resolved = next(line["resolved"] for line in lines if line["kind"] == "resolved")
    assert resolved["recipe"]["parameters"]["folds"] == 5
    assert resolved["weights"]["name"] == "DRAWN"
    assert result["metrics"]["val/accuracy_top1"] == 1.0

    artifact, blobs = artifact_of(first), BlobStore(first.data_folder / "blobs")
    assert artifact.facts.kind == "head"
    weights_path = first.data_folder / "weights" / str(resolved["weights"]["file"])
    classifier = load_classifier(artifact, blobs, weights_path)
    check_golden(outputs_of_classifier(classifier, artifact.facts.preprocessing), artifact, blobs)
    evaluation = json.loads(blobs.read(result["evaluation_sha256"]))
    assert evaluation["split"] == "val"
    images = {entry.id: entry for entry in manifest_of(first).images}
    for prediction in evaluation["predictions"]:
        upright = decode_rgb(blobs.read(images[prediction["image"]].sha256))
        resized = resize_shorter_side(upright, SMALL.resize_px, SMALL.interpolation)
        pixels = torch.from_numpy(center_crop(resized, SMALL.crop_px))[None]
        with torch.inference_mode():
            logits = classifier(normalised(pixels, SMALL))
        assert artifact.facts.calibration is not None
        scores = (logits / artifact.facts.calibration.temperature).softmax(dim=1)[0]
        best = int(scores.argmax())
        assert artifact.facts.classes[best] == prediction["predicted"]
        assert float(scores[best]) == pytest.approx(prediction["score"], abs=1e-4)


def manifest_of(job: TrainingJob) -> Manifest:
    sha256 = job.spec["dataset"]["manifest_sha256"]
    return Manifest.load(BlobStore(job.data_folder / "blobs"), sha256)


def test_cached_features_give_the_same_head_as_computed_ones(
    children: TrainingChildren,
    job: Callable[..., TrainingJob],
) -> None:
    first, second, third = job("job_1"), job("job_2"), job("job_3")
    assert first.run(children) == 0
    (cached,) = (first.data_folder / "cache" / "features").iterdir()
    inode, written = cached.stat().st_ino, cached.read_bytes()
    assert second.run(children) == 0
    assert cached.stat().st_ino == inode  # read, not computed and written again
    cached.write_bytes(b"damaged" + written)
    assert third.run(children) == 0
    assert cached.read_bytes() == written
    hashes = [j.result()["artifact"]["files"]["model.safetensors"] for j in (first, second, third)]
    assert hashes[0] == hashes[1] == hashes[2]


def test_an_error_is_the_last_line_and_the_child_ends_well(
    children: TrainingChildren,
    job: Callable[..., TrainingJob],
) -> None:
    wrong = job(parameters={"folds": 1})
    assert wrong.run(children) == 0
    assert wrong.lines()[-1]["code"] == "recipe-invalid"
    absent = job("job_2", weights="NOWHERE")
    assert absent.run(children) == 0
    assert absent.lines()[-1]["code"] == "weights-unknown"


def test_a_full_disk_is_an_error_with_a_code(
    children: TrainingChildren, job: Callable[..., TrainingJob]
) -> None:
    full = job()
    assert full.run(children, faults="features.before_fsync=enospc") == 0
    assert full.lines()[-1]["code"] == "insufficient-storage"


def test_a_bug_leaves_a_traceback_and_no_last_line(
    children: TrainingChildren, job: Callable[..., TrainingJob]
) -> None:
    broken = job()
    assert broken.run(children, faults="features.before_fsync=eio") == 1
    assert broken.lines()[-1]["kind"] not in ("result", "error")


def test_without_a_val_split_a_head_is_judged_out_of_fold(
    children: TrainingChildren, tmp_path: Path, catalogue: Path
) -> None:
    manifest = store_dataset(tmp_path, {"train": 6}, CLASSES)
    head = TrainingJob(tmp_path, "job_1", training_spec(manifest, catalogue))
    assert head.run(children) == 0
    evaluation_sha256 = head.result()["evaluation_sha256"]
    evaluation = json.loads(BlobStore(tmp_path / "blobs").read(evaluation_sha256))
    assert (evaluation["split"], evaluation["images"]) == ("train-folds", 12)
    assert not any(name.startswith("val/") for name in head.result()["metrics"])
    assert "no-val-images" in [line.get("code") for line in head.lines()]


def test_scratch_needs_no_weights_and_says_how_it_was_judged(
    children: TrainingChildren, tmp_path: Path, catalogue: Path
) -> None:
    manifest = store_dataset(tmp_path, {"train": 5, "test": 2}, CLASSES)
    different = {"recipe": "scratch", "weights": None, "parameters": {"epochs": 1}}
    scratch = TrainingJob(tmp_path, "job_1", training_spec(manifest, catalogue, **different))
    assert scratch.run(children) == 0
    metrics = scratch.result()["metrics"]
    assert {"holdout/accuracy_top1", "test/accuracy_top1"} <= set(metrics)
    artifact = artifact_of(scratch)
    assert artifact.facts.weights is None
    assert artifact.facts.kind == "whole"
    evaluation_sha256 = scratch.result()["evaluation_sha256"]
    evaluation = json.loads(BlobStore(tmp_path / "blobs").read(evaluation_sha256))
    assert evaluation["split"] == "test"


def test_sigterm_stops_with_a_checkpoint_that_the_next_attempt_goes_on_from(
    children: TrainingChildren,
    job: Callable[..., TrainingJob],
) -> None:
    parameters = {"epochs": 40, "batch_size": 4}
    stopped = job(recipe="finetune", parameters=parameters)
    child = stopped.start()
    until(lambda: [x for x in stopped.lines() if x.get("unit") == "steps" and x["done"]], 60)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 75
    assert stopped.lines()[-1]["kind"] == "log"
    saved = [line["step"] for line in stopped.lines() if line["kind"] == "checkpoint"]
    assert saved[-1] > 0
    stopped.spec["time_limit_seconds"] = 0.001
    assert stopped.run(children) == 0
    warnings = [line.get("code") for line in stopped.lines()]
    assert "time-limit-reached" in warnings
    assert f"step {saved[-1]}" in " ".join(line.get("message", "") for line in stopped.lines())


def test_a_time_limit_before_the_first_model_is_an_error(
    children: TrainingChildren, job: Callable[..., TrainingJob]
) -> None:
    late = job(time_limit_seconds=0.001)
    assert late.run(children) == 0
    assert late.lines()[-1]["code"] == "time-limit-too-short"


def test_eight_images_are_memorised(dataset: LoadedDataset) -> None:
    memorise = recipe(
        epochs=8, augmentation="none", label_smoothing=0.0, lr_head=0.1, lr_backbone=1e-3
    )
    state = start_state(memorise)
    measured = train(state, dataset, memorise).measured
    losses = [metrics["train/loss"] for _, metrics in measured if "train/loss" in metrics]
    assert losses[-1] < 0.1 < losses[0]


def test_the_first_loss_of_a_zero_head_is_the_logarithm_of_the_classes(
    dataset: LoadedDataset,
) -> None:
    recorder = train(start_state(recipe()), dataset, recipe(epochs=1, batch_size=64))
    first = next(m["train/loss"] for _, m in recorder.measured if "train/loss" in m)
    assert first == pytest.approx(np.log(len(CLASSES)), abs=1e-5)


def test_frozen_stages_do_not_move(dataset: LoadedDataset) -> None:
    frozen = recipe(tune=2, epochs=1)
    state = start_state(frozen)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    train(state, dataset, frozen)
    state.model.train()
    after = dict(state.model.named_parameters())
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert "backbone.features.0.weight" not in moved


class Scripted(Classification):
    """A task whose candidates have given accuracies and losses, in the order of comparison."""

    def __init__(self, *figures: tuple[float, float]) -> None:
        super().__init__(CLASSES)
        self._figures = list(figures)

    def metrics(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        assert len(logits) == len(targets)
        accuracy, loss = self._figures.pop(0)
        return {"accuracy_top1": accuracy, "loss": loss}


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.9, 1.0), (0.8, 1.0), (0.7, 1.0), (0.6, 1.0)], 0),
        ([(0.5, 1.0), (0.9, 1.0), (0.9, 0.5), (0.6, 0.1)], 2),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 0),
        ([(0.5, 1.0), (0.6, 1.0), (1.0, math.nan), (0.9, math.inf)], 1),
        ([(0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.4, 1.0)], 3),
    ],
)
def test_the_best_candidate_is_what_remains(
    dataset: LoadedDataset, figures: list[tuple[float, float]], best: int
) -> None:
    three = recipe(epochs=3, batch_size=16)  # one step per epoch
    state = start_state(three)
    candidates = [weights_of(state)]
    train(
        state, dataset, three, task=Scripted(*figures),
        save=lambda saved: candidates.append(weights_of(saved)),
    )  # fmt: skip
    candidates = candidates[1:]  # what was saved behind each comparison
    assert state.best_step == best
    assert len({each["head.weight"].numpy().tobytes() for each in candidates}) == 4
    final = weights_of(state)
    assert all(torch.equal(final[name], candidates[best][name]) for name in final)


def weights_of(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_without_any_candidate_of_finite_loss_training_has_diverged(
    dataset: LoadedDataset, loss: float
) -> None:
    with pytest.raises(Diverged):
        train(start_state(recipe()), dataset, recipe(), task=Scripted((1.0, loss)))


def test_a_loss_that_is_not_finite_ranks_below_every_other() -> None:
    task = Classification(CLASSES)
    worst = task.rank({"accuracy_top1": 0.0, "loss": 1e30})
    assert task.rank({"accuracy_top1": 1.0, "loss": math.nan}) < worst
    assert task.rank({"accuracy_top1": 1.0, "loss": math.inf}) < worst


def test_a_loss_that_is_not_finite_stops_within_one_step(dataset: LoadedDataset) -> None:
    wild = recipe(lr_head=1e-3, lr_backbone=1e-3, epochs=3)
    state = start_state(wild)
    with torch.no_grad():
        state.model.head.weight[0, 0] = torch.nan
    with pytest.raises(Diverged) as stopped:
        train(state, dataset, wild)
    assert stopped.value.step == 0


def test_a_passed_time_limit_keeps_the_best_so_far(dataset: LoadedDataset) -> None:
    state = start_state(recipe())
    over = Interruption(limit_seconds=0.0)
    recorder = train(state, dataset, recipe(), over)
    assert recorder.warnings == ["time-limit-reached"]
    assert (state.step, state.best_step) == (0, 0)


class Hourglass(Interruption):
    """A limit that passes after some questions: one is asked before each step."""

    def __init__(self, questions: int) -> None:
        super().__init__(limit_seconds=1.0)
        self._left = questions

    @property
    def out_of_time(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_steps_since_the_last_epoch_are_a_candidate_when_the_time_is_over(
    dataset: LoadedDataset,
) -> None:
    four = recipe(epochs=4, batch_size=4)  # four steps per epoch
    state = start_state(four)
    better = Scripted((0.1, 1.0), (0.2, 1.0), (0.3, 1.0))
    recorder = train(state, dataset, four, Hourglass(6), better)
    assert recorder.warnings == ["time-limit-reached"]
    assert [step for step, m in recorder.measured if "val/loss" in m] == [0, 4, 6]
    assert (state.step, state.best_step) == (6, 6)


@pytest.mark.parametrize("questions", [0, 2])
def test_random_weights_are_no_result_of_a_time_limit(
    dataset: LoadedDataset, questions: int
) -> None:
    scratch = ScratchRecipe(epochs=2, batch_size=4, batch_norm="train", class_weights="none")
    with pytest.raises(TimeLimitTooShort):
        train(start_state(scratch), dataset, scratch, Hourglass(questions))


def test_from_scratch_the_first_epoch_is_the_first_candidate(dataset: LoadedDataset) -> None:
    scratch = ScratchRecipe(epochs=2, batch_size=4, batch_norm="train", class_weights="none")
    state = start_state(scratch)
    recorder = train(state, dataset, scratch, Hourglass(5), Scripted((0.5, 1.0), (0.4, 1.0)))
    assert recorder.warnings == ["time-limit-reached"]
    assert (state.step, state.best_step) == (5, 4)


def place_of(job: TrainingJob) -> Place:
    """Return where a job would work, without touching this process's number of threads."""
    spec = TrainSpec.load(job.next_spec())
    progress = ProgressWriter(job.attempt_folder / FILE_NAME)
    numerics = Numerics(torch.__version__, "", "cpu", torch.get_num_threads(), True)
    return Place(spec, progress, Interruption(None), torch.device("cpu"), numerics, None)


def split_of(
    folder: Path, catalogue: Path, counts: dict[str, int]
) -> tuple[TrainingData, TrainingJob]:
    """Split a dataset of some training images per class, without any other split."""
    whole = store_dataset(folder, {"train": max(counts.values())}, tuple(counts))
    kept = tuple(
        image
        for image in whole.images
        if int(Path(image.path).stem) < counts[whole.classes[image.labels[0]]]
    )
    manifest = Manifest(whole.classes, kept)
    manifest.store(BlobStore(folder / "blobs"))
    job = TrainingJob(folder, "job_1", training_spec(manifest, catalogue, recipe="scratch"))
    return split_dataset(place_of(job), loaded(folder, manifest), SMALL), job


@pytest.mark.parametrize("counts", [{"red": 10, "green": 7}, {"red": 2, "green": 1, "blue": 3}])
def test_what_is_held_out_is_not_learned_from_and_no_class_loses_its_only_image(
    tmp_path: Path, catalogue: Path, counts: dict[str, int]
) -> None:
    data, _ = split_of(tmp_path, catalogue, counts)
    learned, held_out = data.dataset.contents(data.train), data.dataset.contents(data.held_out)
    assert held_out
    assert set(learned).isdisjoint(held_out)
    assert len(learned) + len(held_out) == sum(counts.values())
    labels = data.dataset.labels[torch.from_numpy(data.train)]
    assert set(labels.tolist()) == set(range(len(counts)))


def test_where_no_image_can_be_spared_candidates_are_compared_on_what_is_learned(
    tmp_path: Path, catalogue: Path
) -> None:
    data, job = split_of(tmp_path, catalogue, {"red": 1, "green": 1})
    assert data.train.tolist() == data.held_out.tolist() == [0, 1]
    assert data.held_out_name == "train-seen"
    assert "no class has two different images" in job.lines()[-1]["message"]


def test_a_job_on_one_image_per_class_ends_with_a_model(
    children: TrainingChildren, tmp_path: Path, catalogue: Path
) -> None:
    manifest = store_dataset(tmp_path, {"train": 1}, CLASSES)
    spec = training_spec(manifest, catalogue, recipe="finetune", parameters={"epochs": 1})
    job = TrainingJob(tmp_path, "job_1", spec)
    assert job.run(children) == 0
    assert "train-seen/accuracy_top1" in job.result()["metrics"]


class Exhausted(ProgressWriter):
    """Runs out of memory at the beginning of a phase."""

    def __init__(self, path: Path, phase: str) -> None:
        super().__init__(path)
        self._exhausted = phase

    def phase(self, phase: str) -> None:
        if phase == self._exhausted:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().phase(phase)


@pytest.mark.parametrize("phase", ["weights", "decode", "head", "publish"])
def test_memory_that_runs_out_in_any_phase_has_a_code(
    job: Callable[..., TrainingJob], phase: str
) -> None:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    exhausted = job(parameters={"batch_size": 7}, threads=threads)
    spec = TrainSpec.load(exhausted.next_spec())
    progress = Exhausted(exhausted.attempt_folder / FILE_NAME, phase)
    try:
        with pytest.raises(OutOfMemory) as told:
            run_attempt(spec, progress, Interruption(None))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert (told.value.batch_size, told.value.device) == (7, "cpu")


class Hungry(nn.Module):
    """A backbone for which there is no memory, neither to run nor to be copied."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self._error = error

    def forward(self, _images: torch.Tensor) -> torch.Tensor:
        raise self._error

    def __deepcopy__(self, _memo: object) -> Hungry:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_neither_another_engine_nor_a_malformed_artifact(
    children: TrainingChildren, job: Callable[..., TrainingJob], error: Exception
) -> None:
    probe = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(type(error)):
        choose_engine(Hungry(error).eval(), probe, SMALL)
    finished = job()
    assert finished.run(children) == 0
    blobs = BlobStore(finished.data_folder / "blobs")
    outputs_of = outputs_of_classifier(Classifier(Hungry(error), 512, 2), SMALL)
    with pytest.raises(type(error)):
        check_golden(outputs_of, artifact_of(finished), blobs)


def test_a_head_of_zeros_does_not_pass_with_another_backbone(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    first, second = (start_state(recipe()).model.eval() for _ in range(2))
    with torch.no_grad():
        next(second.backbone.parameters()).mul_(1.5)
    facts = ArtifactFacts(
        task="classification",
        architecture=ARCHITECTURE,
        kind="whole",
        weights=None,
        preprocessing=SMALL,
        classes=CLASSES,
        feature_width=512,
    )
    tensors, golden = tensors_to_publish(first, "whole"), golden_outputs(first, SMALL)
    artifact = write_artifact(blobs, facts, tensors, golden)
    check_golden(outputs_of_classifier(first, artifact.facts.preprocessing), artifact, blobs)
    with pytest.raises(ArtifactGoldenMismatch):
        check_golden(outputs_of_classifier(second, artifact.facts.preprocessing), artifact, blobs)


def test_a_model_scores_images_the_same_alone_and_in_a_batch(dataset: LoadedDataset) -> None:
    torch.manual_seed(0)
    model: Classifier = build_classifier(ARCHITECTURE, 2)
    torch.nn.init.normal_(model.head.weight)
    indices = dataset.indices("val")
    together = predict_logits(model, dataset, indices, SMALL, 8)
    alone = predict_logits(model, dataset, indices, SMALL, 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("architecture", "at_least"), [("mobilenet_v2", 0.94), ("squeezenet1_1", 0.90)]
)
def test_real_photographs_are_told_apart_as_well_as_reported(
    children: TrainingChildren, real_dataset: tuple[Path, dict[str, Any]], shared: Path,
    architecture: str, at_least: float,
) -> None:  # fmt: skip
    data_folder, dataset = real_dataset
    blobs = BlobStore(data_folder / "blobs")
    manifest = Manifest.load(blobs, dataset["manifest_sha256"])
    different = {"architecture": architecture, "weights": "DEFAULT", "threads": 2}
    spec = training_spec(manifest, shared / "weights" / "catalog.json", **different)
    head = TrainingJob(data_folder, f"job_{architecture}", spec)
    assert head.run(children) == 0
    reported = head.result()["metrics"]["val/accuracy_top1"]
    assert reported >= at_least

    artifact = artifact_of(head)
    assert artifact.facts.weights is not None
    weights_path = data_folder / "weights" / artifact.facts.weights["file"]
    classifier = load_classifier(artifact, blobs, weights_path)
    preprocessing = artifact.facts.preprocessing
    key = PixelKey(manifest.digest, preprocessing.resize_px, preprocessing.interpolation)
    pixels = PixelCache(data_folder / "cache" / "pixels").open(key)
    assert pixels is not None
    images = LoadedDataset(manifest, pixels)
    val = images.indices("val")
    logits = predict_logits(classifier, images, val, preprocessing, 51)
    labels = images.labels[torch.from_numpy(val)]
    assert Classification(manifest.classes).metrics(logits, labels)["accuracy_top1"] == reported
