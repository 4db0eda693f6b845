"""The install steps of images, line by line from the Dockerfile, without an engine.

`GRAFT_TEST_IMAGES` names the images: `api` here, all in `make soak`. torch is large: that of the
workers is resolved, not installed; the CPU build from the index that pip is configured for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker_files import REPOSITORY, Stage, copied, stages

pytestmark = pytest.mark.slow

IMAGES = os.environ.get("GRAFT_TEST_IMAGES", "api").split(",")
_ABSOLUTE = ("/opt/graft", "/wheels", "/code", "/torch")
_IMPORTS = (
    "import service.app, service.cli.commands, jobs.worker, h5py, psycopg, "
    "opentelemetry.exporter.otlp.proto.http, importlib.util as found; "
)
_NO_TORCH = "assert found.find_spec('torch') is None; assert found.find_spec('torchvision') is None"


class Build:
    """A folder that stands for the file system of a build."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._work = root / "build"
        self._work.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", root / "system"], check=True)

    def run(self, stage: Stage, *, more: str = "") -> None:
        """Do the COPY and RUN steps of a stage in their order."""
        for keyword, rest in stage.steps:
            if keyword == "COPY":
                self._copy(stage, rest)
            elif keyword == "RUN":
                words = [word for word in rest.split(" ") if not word.startswith("--mount=")]
                self.shell(" ".join(words) + more)

    def shell(self, command: str) -> None:
        """Run a line of the Dockerfile with its absolute paths below our root."""
        for path in _ABSOLUTE:
            command = command.replace(f" {path}", f" {self.root}{path}")
        path = f"{self.root}/opt/graft/bin:{self.root}/system/bin:/usr/bin:/bin"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GRAFT_", "PYTHON"))}
        environment = {**kept, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"

    def _copy(self, stage: Stage, rest: str) -> None:
        for names, destination in copied(stage):
            if rest.split()[-1] != destination or rest.split()[:-1] != names:
                continue
            for name in names:
                source, target = REPOSITORY / name, self._work / destination
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
                else:
                    place = target / source.name if destination.endswith("/") else target
                    place.parent.mkdir(parents=True, exist_ok=True)
                    text = source.read_text()
                    place.write_text(re.sub(r"^--index-url .*$", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("image", IMAGES)
def test_image_is_installed_from_locked_packages(tmp_path: Path, image: str) -> None:
    build, found = Build(tmp_path), stages()
    build.run(found["locked"])
    torch = found.get(image.replace("worker", "torch"))
    if torch is None:
        build.run(found["code"])
        shutil.copytree(tmp_path / "code", tmp_path / "opt" / "graft", dirs_exist_ok=True)
        build.shell(f'cd / && python -c "{_IMPORTS}{_NO_TORCH}"')
        build.shell("cd / && graft --help && graft ping --help")
    else:
        build.run(torch, more=" --dry-run")
