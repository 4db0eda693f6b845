"""Whether a training starts, waits, or starts alone: over numbers."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.admission import Need, NetworkSize, Verdict, judge, need_of
from jobs.memory import Memory

_GIB = 1 << 30


@pytest.mark.parametrize(
    ("need_gib", "total_gib", "available_gib", "running_gib", "expected"),
    [
        (2, 8, 4, [], Verdict.START),
        (2, 8, 4, [3], Verdict.START),
        (2, 8, 1, [3], Verdict.WAIT),  # the others have taken it
        (6, 8, 7, [3], Verdict.WAIT),  # the others have not taken theirs yet
        (6, 8, 1, [], Verdict.WAIT),  # other programs have it
        (9, 8, 8, [3], Verdict.WAIT),  # never fits: not beside others
        (9, 8, 8, [], Verdict.START_ALONE),
        (0, 8, 0, [3], Verdict.START),  # takes nothing of it
    ],
)
def test_verdict_follows_from_need_and_memory(
    need_gib: int,
    total_gib: int,
    available_gib: int,
    running_gib: list[int],
    expected: Verdict,
) -> None:
    memory = Memory(total_gib * _GIB, available_gib * _GIB)
    running = [gib * _GIB for gib in running_gib]
    assert judge(need_gib * _GIB, memory, running) is expected


def test_unknown_memory_stops_nobody() -> None:
    assert judge(1 << 50, None, [1 << 50]) is Verdict.START


def spec(recipe: str = "finetune", **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"backbone": "mobilenet_v2", "recipe": recipe, "parameters": parameters}


def test_peak_of_earlier_jobs_of_the_kind_counts_with_a_margin() -> None:
    earlier: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (spec(batch_size=64), {"peak_memory_bytes": 9000}),
        (spec("head"), {"peak_memory_bytes": 8000}),
        (spec(), {"wall_seconds": 3}),  # from before peaks were recorded
        (spec(), {"peak_memory_bytes": 1000}),
        (spec(epochs=9), {"peak_memory_bytes": 2000}),
        (spec(), {"peak_memory_bytes": 7000, "peak_device_memory_bytes": 5000}),
    ]
    assert need_of(spec(), earlier, None, on_gpu=False) == Need(2200, 0, measured=True)
    on_gpu = need_of(spec(), earlier, None, on_gpu=True)
    assert on_gpu.host_bytes == 7700
    context_bytes = on_gpu.device_bytes - 5500  # of CUDA: no figure of torch's has it
    assert 400 << 20 < context_bytes < 1 << 30


def test_races_of_other_backbones_are_of_another_kind() -> None:
    def race(*architectures: str) -> dict[str, Any]:
        return {"entrants": [{"architecture": name} for name in architectures], "parameters": {}}

    earlier = [
        (race("vgg16"), {"peak_memory_bytes": 9000}),
        (race("resnet18", "vgg11"), {"peak_memory_bytes": 1000}),
    ]
    found = need_of(race("resnet18", "vgg11"), earlier, None, on_gpu=False)
    assert found == Need(1100, 0, measured=True)
    assert not need_of(race("resnet18"), earlier, None, on_gpu=False).measured


def test_estimate_grows_with_batch_network_and_what_is_learned() -> None:
    def host_bytes(parameters: int, **of_spec: Any) -> int:  # noqa: ANN401
        need = need_of(spec(**of_spec), [], NetworkSize(parameters, 1000), on_gpu=False)
        assert not need.measured
        assert need.device_bytes == 0
        return need.host_bytes

    small = host_bytes(1_000_000, recipe="head")
    assert small < host_bytes(100_000_000, recipe="head") < host_bytes(100_000_000)
    assert host_bytes(1_000_000) < host_bytes(1_000_000, batch_size=64)
    assert need_of(spec(), [], None, on_gpu=True).device_bytes > 0
