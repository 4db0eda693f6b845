"""What has to hold after every case, whatever came back."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.abuse.case import Case, Outcome
from tests.abuse.sending import Answer
from tests.acceptance.running import RunningService

_REPOSITORY = str(Path(__file__).resolve().parents[2])
_PLANNED = frozenset({503, 507})
_MAX_BODY_CHARACTERS = 64 << 10
_MAX_GROWTH_BYTES = 64 << 20
#: What tells a stranger how the service is made, or where it lies.
_INTERNALS = re.compile(
    r"Traceback|File \"|line \d+, in |\.py\b|site-packages|/usr/lib|0x[0-9a-f]{8}"
    r"|\b[A-Z]\w+(?:Error|Exception|Warning)\b|<class |object at "
    r"|(?i:sqlite|psycopg|sqlalchemy|pydantic|starlette|uvicorn|\bh11\b)|PIL\."
    r"|\b(?:SELECT|INSERT|UPDATE|DELETE) \w+ "
)
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def tree_of(folder: Path, without: Path) -> frozenset[tuple[str, int, int]]:
    """Return path, size and time of every file below `folder` that is not below `without`."""
    found = set()
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) != without]
        for name in (*folders, *files):
            path = Path(root, name)
            facts = path.lstat()
            size = -1 if path.is_dir() else facts.st_size
            found.add((str(path), size, 0 if path.is_dir() else facts.st_mtime_ns))
    return frozenset(found)


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process once it is the same three times."""
    process = psutil.Process(pid)
    last, same = -1, 0
    for _ in range(50):
        now = process.memory_info().rss
        same = same + 1 if now == last else 0
        if same == 2:
            break
        last = now
        time.sleep(0.05)
    return int(process.memory_info().rss)


@dataclass
class Watch:
    """Compares a service with what it was before.

    Args:
        service: Which.
        canary: A folder around its data folder, into which nothing may write.
    """

    service: RunningService
    canary: Path

    def __post_init__(self) -> None:
        self._log = self.service.log_path
        self._before = self._outside()
        self._api = psutil.Process(self.service.pids()["api"])
        self._memory_bytes = self._api.memory_info().rss

    def violations(self, case: Case, answer: Answer) -> list[str]:
        """Return in which ways a case broke what always holds."""
        found = []
        status = answer.outcome.status
        if status == 0 or (status >= 500 and status not in _PLANNED):
            found.append(f"status {status}")
        if answer.seconds > case.seconds:
            found.append(f"{answer.seconds:.1f} s")
        found += leaks_in(answer.text, self.service)
        if status >= 400:
            found += _form_faults(answer)
        if self._outside() != self._before:
            found.append(f"files outside: {sorted(self._outside() ^ self._before)[:4]}")
        if (grown := self._grown_bytes()) > _MAX_GROWTH_BYTES:
            found.append(f"{grown >> 20} MiB more memory")
        return found

    def leftovers(self) -> list[str]:
        """Return what is left of uploads and checks that ended."""
        data = self.service.data_folder
        scratch = [str(path) for path in (data / "runs").glob("*/*/ingest")]
        return scratch + [str(path) for path in (data / "uploads").glob("*")]

    def log_faults(self) -> list[str]:
        """Return lines of the log that are tracebacks or hold what a terminal would obey."""
        text = self._log.read_text(errors="replace")
        lines = [line for line in text.split("\n") if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line)]
        return lines[:3] + (["a traceback"] if "Traceback" in text else [])

    def _outside(self) -> frozenset[tuple[str, int, int]]:
        found = tree_of(self.canary, self.service.data_folder)
        return frozenset(item for item in found if item[0] != str(self._log))

    def _grown_bytes(self) -> int:
        now = int(self._api.memory_info().rss)  # raises if the process is another one
        grown: int = now - self._memory_bytes
        self._memory_bytes = now
        return grown


def leaks_in(text: str, service: RunningService) -> list[str]:
    """Return what in an answer tells how the service is made or where it lies."""
    paths = (str(service.data_folder), _REPOSITORY, "/etc/passwd:", "root:x:")
    found = [path for path in paths if path in text]
    found += [match[0] for match in _INTERNALS.finditer(text)]
    return [f"the answer tells {leak!r}" for leak in found]


def _form_faults(answer: Answer) -> list[str]:
    found = []
    is_foreign = answer.outcome.code == "error"
    is_problem = "application/problem+json" in answer.text
    if not (is_foreign or is_problem):
        found.append("no problem document")
    if not _CODE.fullmatch(answer.outcome.code):
        found.append(f"code {answer.outcome.code!r}")
    if len(answer.text) > _MAX_BODY_CHARACTERS:
        found.append(f"{len(answer.text)} characters")
    if answer.outcome.status in _PLANNED and "retry-after" not in answer.text.lower():
        found.append("no Retry-After")
    return found


def same(first: dict[str, Outcome], second: dict[str, Outcome]) -> list[str]:
    """Return how two runs differ."""
    names = sorted(first.keys() | second.keys())
    return [
        f"{name}: {first.get(name)} and {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    ]
