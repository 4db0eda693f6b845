"""What `docker/` says, as the tests that stand in for a container engine need it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docker"
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile: its steps of `(keyword, rest)`, continued lines joined."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all_of(self, keyword: str) -> list[str]:
        """Return what follows each step of a keyword."""
        return [rest for found, rest in self.steps if found == keyword]


def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    joined = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in filter(None, joined.splitlines()):
        keyword, rest = line.split(None, 1)
        if keyword == "FROM":
            base, name = rest.split(" AS ")
            found[name] = Stage(name, base)
        elif found:  # not the arguments before the first stage
            list(found.values())[-1].steps.append((keyword, rest.strip()))
    return found


def copied(stage: Stage) -> list[tuple[list[str], str]]:
    """Return the sources in the repository and the destination of each COPY of a stage."""
    parts = [rest.split() for rest in stage.all_of("COPY")]
    return [(line[:-1], line[-1]) for line in parts if not line[0].startswith("--from")]


def is_sent_to_builder(path: str) -> bool:
    """Tell whether `.dockerignore` lets a file pass: the last pattern that matches decides."""
    names = [path, *map(str, PurePosixPath(path).parents)]
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parts = (_PATTERNS.get(part, re.escape(part)) for part in re.split(_SPECIAL, pattern))
        expression = "".join(parts)
        if any(re.fullmatch(expression, name) for name in names if name != "."):
            sent = line.startswith("!")
    return sent


_SPECIAL = re.compile(r"(\*\*/|\*)")
_PATTERNS = {"**/": "(?:.*/)?", "*": "[^/]*"}


def compose(
    *arguments: str, environment: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run the real compose; it needs no engine for what is asked of it here."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    return subprocess.run(
        [_BIN / "docker-compose", *arguments],
        env={**inherited, **environment},
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def compose_services(password_file: Path, *files: str) -> dict[str, dict[str, Any]]:
    """Return the services of compose files as compose itself reads them."""
    chosen = [part for name in files for part in ("-f", name)]
    environment = {"GRAFT_DATABASE_PASSWORD_FILE": str(password_file)}
    done = compose(*chosen, "config", "--format", "json", environment=environment)
    assert done.returncode == 0, done.stderr
    services: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return services
