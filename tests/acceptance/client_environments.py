"""Real clients of other protocols, each in a virtual environment of its own.

An environment is made by pip once per machine, in a cache folder keyed by the requirement, and used
by every later run. Its program runs as a user's would: a process of its own that knows an address.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs
import pytest

from service.client import Json

_PROGRAMS = Path(__file__).parent / "clients"
_INSTALL_SECONDS = 300
_RUN_SECONDS = 240


def run_client(program: str, requirement: str, *arguments: str) -> Json:
    """Run `clients/<program>.py` in the environment of a requirement; return what it printed."""
    said: Json = json.loads(run_outside(requirement, _PROGRAMS / f"{program}.py", *arguments))
    return said


def run_outside(requirements: str, program: Path, *arguments: str) -> str:
    """Run a program where only some packages are installed; return what it printed.

    Args:
        requirements: As pip takes them, with spaces between.
        program: A Python file.
        arguments: Of the program.
    """
    python = _python_of(requirements)
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-P", program, *arguments],
        env={**outside, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _python_of(requirements: str) -> Path:
    """Return the interpreter of an environment; one process makes it, others wait."""
    key = hashlib.sha256(f"{requirements} {sys.version}".encode()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("graft-tests") / "clients" / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _install(requirements, folder)
            (folder / "complete").write_text(requirements)
    return folder / "bin" / "python"


def _install(requirements: str, folder: Path) -> None:
    """Install; where pip cannot, tests are skipped, and fail with `CI=true`."""
    venv.create(folder, with_pip=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", *quiet, *requirements.split()],
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
    )
    if done.returncode == 0:
        return
    reason = f"pip cannot install {requirements}: {done.stderr[-500:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
