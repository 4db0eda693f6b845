"""How much memory there is, read from files of the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobs.memory import Memory, host_memory, peak_bytes_of_process
from tests.training_jobs import REPOSITORY

_GIB = 1 << 30


def machine(folder: Path, group: str, **files: str) -> tuple[Path, Path]:
    """Write a `/proc` of 16 GiB, 10 of them available, and the files of our control group."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 10485760 kB\n")
    (proc / "self" / "cgroup").write_text(group)
    for path, text in files.items():
        file = groups / path.replace("__", "/").replace("-", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return proc, groups


def test_host_without_limits_has_what_the_kernel_says(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/a\n", **{"a__memory-max": "max\n"})
    assert host_memory(proc, groups) == Memory(16 * _GIB, 10 * _GIB)


def test_limit_of_an_outer_control_group_counts_without_files_that_can_be_dropped(
    tmp_path: Path,
) -> None:
    files = {
        "a__memory-max": f"{4 * _GIB}\n",
        "a__memory-current": f"{3 * _GIB}\n",
        "a__memory-stat": f"anon 1\ninactive_file {1 * _GIB}\n",
        "a__b__memory-max": "max\n",
    }
    proc, groups = machine(tmp_path, "0::/a/b\n", **files)
    assert host_memory(proc, groups) == Memory(4 * _GIB, 2 * _GIB)


def test_limit_of_an_old_control_group_counts(tmp_path: Path) -> None:
    files = {
        "memory__a__memory-limit_in_bytes": f"{2 * _GIB}\n",
        "memory__a__memory-usage_in_bytes": f"{3 * _GIB}\n",
        "memory__a__memory-stat": "total_inactive_file 0\n",
        "memory__memory-limit_in_bytes": "9223372036854771712\n",
    }
    proc, groups = machine(tmp_path, "4:cpu:/a\n3:memory:/a\n0::/\n", **files)
    assert host_memory(proc, groups) == Memory(2 * _GIB, 0)


def test_host_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    assert host_memory(tmp_path, tmp_path) is None


def test_this_host_has_memory() -> None:
    memory = host_memory()
    assert memory is not None
    assert 0 < memory.available_bytes <= memory.total_bytes


_PARENT = """
import subprocess, sys
much = b"1" * (300 << 20)
child = "from jobs.memory import peak_bytes_of_process; print(peak_bytes_of_process())"
sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)
"""


def test_peak_of_a_small_child_is_not_that_of_its_large_parent() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _PARENT], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert 1 << 20 < int(ended.stdout) < 150 << 20


def test_peak_without_a_proc_is_what_the_system_says(tmp_path: Path) -> None:
    held = b"1" * (50 << 20)
    assert peak_bytes_of_process(tmp_path) > len(held)
