from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from jobs.recipes import FinetuneRecipe
from jobs.training.checkpoint import Checkpoints
from jobs.training.optimizer import build_optimizer, prepare_modules
from jobs.training.state import TrainingState
from models_cache.backbones import Classifier


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save({"weight": torch.full((3,), float(step))}, {"step": step})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def small_state() -> TrainingState:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    model = Classifier(backbone, 6, 2).to(memory_format=torch.channels_last)
    recipe = FinetuneRecipe(epochs=1, tune=9, batch_norm="train", lr_head=0.1, lr_backbone=0.1)
    state = TrainingState(model, build_optimizer(model, recipe))
    prepare_modules(model, recipe)
    return state


def step(state: TrainingState, seed: int) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    loss = nn.functional.cross_entropy(state.model(images), torch.tensor([0, 1, 0, 1]))
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.step += 1


def model_bytes(state: TrainingState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def test_the_newest_checkpoint_is_found_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    save(checkpoints, 0, 9, 10)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10
    assert newest.tensors()["weight"].tolist() == [10.0] * 3
    assert files(tmp_path) == [
        f"step-{number:08d}{suffix}" for number in (9, 10) for suffix in (".json", ".safetensors")
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "json", "unfinished"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    tensors = tmp_path / "step-00000002.safetensors"
    data = bytearray(tensors.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "truncate":
        tensors.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        tensors.unlink()
    elif damage == "json":
        tensors.with_suffix(".json").write_text('{"step": 2')
    else:
        tensors.with_suffix(".json").unlink()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    assert checkpoints.newest() is None


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    (tmp_path / "step-00000002.safetensors").write_bytes(b"")
    save(checkpoints, 3)
    assert {name[:13] for name in files(tmp_path)} == {"step-00000001", "step-00000003"}


def test_checkpoints_of_another_configuration_do_not_push_out_new_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step_done in (8, 9):
        checkpoints.save({}, {"step": step_done, "config": "old"})
    checkpoints.save({}, {"step": 1, "config": "new"})
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.step, newest.facts["config"]) == (1, "new")


def test_cleared_checkpoints_are_gone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    checkpoints.clear()
    assert files(tmp_path) == []
    assert checkpoints.newest() is None


def test_a_save_sweeps_what_killed_attempts_left(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.safetensors.0f.tmp").write_bytes(b"half")
    (tmp_path / "step-00000003.safetensors").write_bytes(b"without json")
    save(Checkpoints(tmp_path), 4)
    assert files(tmp_path) == ["step-00000004.json", "step-00000004.safetensors"]


def test_a_restored_state_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    whole = small_state()
    for seed in range(3):
        step(whole, seed)
    whole.keep_as_best({"accuracy_top1": 0.5, "loss": 1.0})
    step(whole, 3)
    checkpoints.save(whole.tensors(), whole.facts())
    for seed in range(4, 8):
        step(whole, seed)

    newest = checkpoints.newest()
    assert newest is not None
    restored = small_state()
    restored.restore(newest.tensors(), json.loads(json.dumps(newest.facts)))
    assert (restored.step, restored.best_step) == (4, 3)
    for seed in range(4, 8):
        step(restored, seed)
    expected, found = model_bytes(whole), model_bytes(restored)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    whole.load_best()
    restored.load_best()
    expected, found = model_bytes(whole), model_bytes(restored)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_best_is_not_stored_twice_while_it_is_the_present_model() -> None:
    state = small_state()
    state.keep_as_best({"accuracy_top1": 0.5, "loss": 1.0})
    assert not any(name.startswith("best/") for name in state.tensors())
    step(state, 0)
    assert any(name.startswith("best/") for name in state.tensors())


def test_only_the_last_stages_learn_when_asked_and_deeper_ones_learn_faster() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    model = Classifier(backbone, 6, 2)
    recipe = FinetuneRecipe(epochs=1, tune=2, batch_norm="eval", layer_decay=0.5)
    optimizer = build_optimizer(model, recipe)
    learning = [parameter.requires_grad for parameter in backbone.parameters()]
    assert learning == [False, False, True, True, True, True]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    first, last = (rates[id(backbone[i].weight)] for i in (1, 2))
    assert last == recipe.lr_backbone
    assert first == pytest.approx(recipe.lr_backbone * 0.5)
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decays[id(model.head.bias)] == 0.0
    assert decays[id(model.head.weight)] == recipe.weight_decay


@pytest.mark.parametrize(
    ("tune", "batch_norm", "moves"), [(9, "train", True), (9, "eval", False), (0, "train", False)]
)
def test_batch_norm_statistics_move_only_where_they_should(
    tune: int, batch_norm: Literal["train", "eval"], moves: bool
) -> None:
    state = small_state()
    recipe = FinetuneRecipe(epochs=1, tune=tune, batch_norm=batch_norm)
    state.optimizer = build_optimizer(state.model, recipe)
    prepare_modules(state.model, recipe)
    before = {name: value.clone() for name, value in state.model.named_buffers()}
    step(state, 0)
    after = dict(state.model.named_buffers())
    assert before
    assert all(torch.equal(before[name], after[name]) is not moves for name in before)


def test_frozen_stages_stay_in_eval_mode_and_learning_ones_do_not() -> None:
    stages = [
        nn.Sequential(nn.Linear(3, 4), nn.Dropout()),
        nn.Sequential(nn.Linear(4, 6), nn.Dropout()),
    ]
    backbone = nn.Sequential(*stages)
    model = Classifier(backbone, 6, 2)
    recipe = FinetuneRecipe(epochs=1, tune=1, batch_norm="train")
    build_optimizer(model, recipe)
    prepare_modules(model, recipe)
    first, last = (stage[1].training for stage in stages)
    assert (first, last, model.head.training) == (False, True, True)
