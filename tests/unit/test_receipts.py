"""What differs between a recorded receipt and what is there now."""

from __future__ import annotations

from typing import Any

from jobs.receipts import differences

RECORDED: dict[str, Any] = {
    "dataset": "d" * 64,
    "recipe": {"name": "finetune", "parameters": {"epochs": 6}},
    "weights": {"name": "W", "sha256": "a" * 64},
    "numerics": {"torch": "2.14.1", "threads": 2},
    "seed": 0,
    "code_version": "0.1.0",
}


def test_the_same_receipt_has_no_differences() -> None:
    assert differences(RECORDED, RECORDED) == []


def test_every_difference_is_named_with_both_values() -> None:
    now = {**RECORDED, "numerics": {"torch": "2.15.0", "threads": 2}, "weights": None}
    assert differences(RECORDED, now) == [
        "weights.name was 'W' and is None",
        f"weights.sha256 was {'a' * 64!r} and is None",
        "numerics.torch was '2.14.1' and is '2.15.0'",
    ]


def test_another_version_of_the_program_and_new_parameters_are_no_difference() -> None:
    parameters = {"epochs": 6, "invented_later": 0}
    now = {
        **RECORDED,
        "code_version": "0.2.0",
        "recipe": {"name": "finetune", "parameters": parameters},
    }
    assert differences(RECORDED, now) == []
