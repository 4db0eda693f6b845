"""Checks of the machine: Python, torch and its device, memory and limits."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.gpus import visible_gpus
from jobs.memory import host_memory
from models_cache.disk_space import disk_space
from service.checkup.finding import Finding, fine, problem, warning
from service.settings import Settings, child_environment, visible_devices

#: The first release of each line with the fixes of the archive modules (CVE-2025-8194, -8291).
_SAFE_PYTHON = {(3, 11): 14, (3, 12): 12, (3, 13): 10}
_LEAST_FILES = 1024
_ENOUGH_FILES = 4096
_LEAST_MEMORY_BYTES = 1 << 30
_ENOUGH_MEMORY_BYTES = 4 << 30
_SMALL_SHARED_BYTES = 64 << 20
_TORCH_SECONDS = 120.0
_LOOK_AT_TORCH = """
import json, torch, torchvision
cuda = torch.cuda.is_available()
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__,
                  "built_for": torch.version.cuda, "names": names}))
"""


def check_machine(settings: Settings) -> Iterator[Finding]:
    """Look at what every process of the service needs."""
    yield _python()
    yield from _device(settings)
    yield _memory()
    yield _open_files()
    yield from _shared_memory(Path("/dev/shm"))  # noqa: S108 - it is looked at


def _python() -> Finding:
    line, micro = sys.version_info[:2], sys.version_info.micro
    version = f"CPython {line[0]}.{line[1]}.{micro}"
    if micro < _SAFE_PYTHON.get(line, 0):
        floor = f"{line[0]}.{line[1]}.{_SAFE_PYTHON[line]}"
        return warning(
            "python",
            f"{version} has known holes in its archive modules, which Graft does not use",
            f"update to {floor} or later",
        )
    return fine("python", version)


def _device(settings: Settings) -> Iterator[Finding]:
    """Import torch in a process of its own, since this one never does."""
    command = [sys.executable, "-P", "-c", _LOOK_AT_TORCH]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            env=child_environment(settings),
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield problem("torch", f"no answer in {_TORCH_SECONDS:.0f} s", "check the GPU's driver")
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield problem(
            "torch", said, "pip install 'graft[train]': torch and torchvision have to fit"
        )
        return
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    yield fine("torch", f"torch {facts['torch']}, torchvision {facts['torchvision']}")
    yield _gpu(settings.device, facts, len(visible_gpus(visible_devices())))


def _gpu(wanted: str, facts: dict[str, Any], driver_sees: int) -> Finding:
    names = facts["names"]
    if wanted.startswith("cuda") and len(names) <= int(wanted.partition(":")[2] or 0):
        return problem(
            "device",
            f"GRAFT_DEVICE is {wanted}, and torch finds {len(names)} GPUs "
            f"(built for CUDA {facts['built_for']}, the driver sees {driver_sees})",
            "install a torch that fits the driver, or set GRAFT_DEVICE=cpu",
        )
    if wanted == "auto" and driver_sees and not names:
        return warning(
            "device",
            f"the driver sees {driver_sees} GPUs and torch (CUDA {facts['built_for']}) none",
            "install a torch that fits the driver, or set GRAFT_DEVICE=cpu to say so",
        )
    on_gpu = bool(names) and wanted != "cpu"
    return fine("device", f"{', '.join(names)}" if on_gpu else "the processor")


def _memory() -> Finding:
    memory = host_memory()
    if memory is None:
        return warning("memory", "it cannot be told how much there is", "look at /proc/meminfo")
    found = f"{memory.available_bytes >> 20} of {memory.total_bytes >> 20} MiB available"
    advice = "end other programs, or raise the limit of the container"
    if memory.available_bytes < _LEAST_MEMORY_BYTES:
        return problem("memory", found, advice)
    if memory.available_bytes < _ENOUGH_MEMORY_BYTES:
        return warning("memory", found, advice)
    return fine("memory", found)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found, advice = f"{soft} at once", f"ulimit -n {_ENOUGH_FILES}, or LimitNOFILE= of the unit"
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return fine("open-files", found)
    if soft < _LEAST_FILES:
        return problem("open-files", found, advice)
    return warning("open-files", found, advice)


def _shared_memory(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        return
    free_bytes = disk_space(folder).free_bytes
    found = f"{free_bytes >> 20} MiB free"
    if free_bytes < _SMALL_SHARED_BYTES:
        yield warning("shared-memory", found, "start the container with --shm-size 1g")
    else:
        yield fine("shared-memory", found)
