"""Which GPUs of a machine are ours: over the words of `CUDA_VISIBLE_DEVICES`."""

from __future__ import annotations

import pytest

from jobs.gpus import chosen_gpus, gpu_memory, visible_gpus

A, B, C = "GPU-8932f937-d72c", "GPU-8a410c19-11aa", "GPU-f0aa51be-0c55"
PART = "MIG-4f7d3a88-0d21"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, (A, B, C)),
        ("0,1,2", (A, B, C)),
        ("2,0", (C, A)),  # torch's cuda:0 is the driver's 2
        (" 1 , 2 ", (B, C)),
        ("", ()),
        ("-1", ()),
        ("none", ()),
        ("0,2,-1,1", (A, C)),
        ("1,7,0", (B,)),
        ("0,0", ()),
        (C, (C,)),
        ("GPU-8932,GPU-f0", (A, C)),
        ("GPU-8", ()),  # of two
        (f"{B},1", ()),  # the same one twice
        (f"{PART},MIG-other", (PART,)),
    ],
)
def test_gpus_are_those_that_torch_finds_in_its_order(
    visible: str | None, expected: tuple[str, ...]
) -> None:
    assert chosen_gpus((A, B, C), visible) == expected


def test_a_machine_without_gpus_has_none() -> None:
    assert chosen_gpus((), None) == ()
    assert chosen_gpus((), "0") == ()


def test_no_gpu_is_visible_where_none_may_be() -> None:
    assert visible_gpus("") == ()


def test_gpu_that_is_not_there_is_unknown() -> None:
    assert gpu_memory("GPU-00000000-0000-0000-0000-000000000000") is None
