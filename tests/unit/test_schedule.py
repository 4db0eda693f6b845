from __future__ import annotations

import numpy as np
import pytest

from jobs.training.schedule import Schedule, learning_rate_factor


def schedule(**different: float) -> Schedule:
    values = {"images": 50, "batch_size": 16, "epochs": 3, "warmup_fraction": 0.25, "seed": 5}
    values |= different
    return Schedule(
        int(values["images"]),
        int(values["batch_size"]),
        int(values["epochs"]),
        values["warmup_fraction"],
        int(values["seed"]),
    )


def test_learning_rate_rises_to_its_peak_in_warmup_and_falls_to_nearly_zero() -> None:
    factors = [learning_rate_factor(step, 20, 4) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 0.01


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_learning_rate_factor_stays_between_zero_and_one(warmup_steps: int) -> None:
    assert all(0 <= learning_rate_factor(step, 7, warmup_steps) <= 1 for step in range(8))


def test_every_image_is_seen_once_per_epoch_in_batches_of_nearly_equal_size() -> None:
    batches = schedule().epoch(0).batches
    assert len(batches) == schedule().steps_per_epoch == 4
    assert sorted(np.concatenate(batches)) == list(range(50))
    assert {len(batch) for batch in batches} == {12, 13}


def test_an_epoch_is_the_same_whatever_was_asked_before() -> None:
    first = schedule()
    for epoch in range(3):
        first.epoch(epoch)
    asked_after, asked_alone = first.epoch(1), schedule().epoch(1)
    assert np.array_equal(asked_after.draws, asked_alone.draws)
    assert all(map(np.array_equal, asked_after.batches, asked_alone.batches))


def test_epochs_and_seeds_differ_in_order_and_draws() -> None:
    orders = {
        tuple(np.concatenate(schedule(seed=seed).epoch(epoch).batches))
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 6


def test_steps_and_seeds_give_different_torch_seeds() -> None:
    seeds = {schedule(seed=seed).torch_seed(step) for seed in (0, 1) for step in range(10)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
