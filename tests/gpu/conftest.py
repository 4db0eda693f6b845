"""A CUDA device, or a clear reason why there is none; imports what a bare GPU image has."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from jobs.executors.local import TRAINING_ENVIRONMENT
from models_cache.devices import use_full_float32
from tests.training_jobs import TrainingChildren

# As the service sets it for its children; CUDA reads both when it is first used.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = TRAINING_ENVIRONMENT["CUBLAS_WORKSPACE_CONFIG"]
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The first CUDA device; missing is a skip, and a failure with `GRAFT_REQUIRE_GPU=1`."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    reason = "torch finds no CUDA device"
    if os.environ.get("GRAFT_REQUIRE_GPU") == "1":
        pytest.fail(f"GRAFT_REQUIRE_GPU=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def exact(cuda: torch.device) -> Iterator[None]:
    """Full float32, as every process of the service has it, and nothing left of other tests."""
    use_full_float32()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    yield
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_per_process_memory_fraction(1.0, cuda)


@pytest.fixture(scope="session")
def children(cuda: torch.device) -> Iterator[TrainingChildren]:
    """Forks training children from a process that has not touched CUDA."""
    del cuda  # skips
    started = TrainingChildren()
    yield started
    started.close()
