"""A real service for tests: `graft serve` as a user starts it, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.store.database import Database
from service.client import Graft, wait_until_ready
from service.free_port import free_port
from tests.databases import database_url

_STOP_SECONDS = 30.0


@dataclass
class RunningService:
    """A started service.

    Args:
        url: Where it listens.
        data_folder: Its state.
        database_url: Its rows.
        log_path: Output of all its processes.
        process: The supervisor.
    """

    url: str
    data_folder: Path
    database_url: str
    log_path: Path
    process: subprocess.Popen[bytes]

    def client(self) -> Graft:
        """Return a new client."""
        return Graft(self.url)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Yield its rows, for what the API does not tell."""
        database = Database(self.database_url)
        yield database
        database.close()

    def pids(self) -> dict[str, int]:
        """Return the process numbers by role: api, inference, worker, forkserver, train, ..."""
        found = {"supervisor": self.process.pid}
        for child in descendants(self.process.pid):
            try:
                role = _role(child)
            except psutil.Error:
                continue
            if role is not None:
                found[role] = child.pid
        return found


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living processes below `pid`."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _role(process: psutil.Process) -> str | None:
    line = process.cmdline()
    for name in ("api", "inference", "worker"):
        if line[-2:] == ["service.cli.main", name]:
            return name
    if "jobs.forkserver" in line:
        parent = process.parent()
        forked = parent is not None and "jobs.forkserver" in parent.cmdline()
        return "train" if forked else "forkserver"
    return "ingest" if "jobs.datasets.ingest" in line else None


@contextmanager
def running(
    data_folder: Path, *, catalogue: Path | None = None, environment: Mapping[str, str] = {}
) -> Iterator[RunningService]:
    """Run `graft serve` until the block ends; it must then stop by itself and leave nothing."""
    service = start(data_folder, catalogue=catalogue, environment=environment)
    try:
        with service.client() as graft:
            wait_until_ready(graft)
        yield service
        below = descendants(service.process.pid)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(_STOP_SECONDS) == 0, service.log_path.read_text()[-4000:]
        assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finally:
        service.process.kill()
        service.process.wait()


def start(
    data_folder: Path,
    *,
    catalogue: Path | None = None,
    environment: Mapping[str, str] = {},
    port: int | None = None,
) -> RunningService:
    """Start `graft serve` and return at once."""
    data_folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port("127.0.0.1")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GRAFT_")}
    settings = {
        "GRAFT_DATA_DIR": str(data_folder),
        "GRAFT_DATABASE_URL": environment.get("GRAFT_DATABASE_URL") or database_url(data_folder),
        "GRAFT_PORT": str(port),
        "GRAFT_OFFLINE": "1",
        "GRAFT_DEVICE": "cpu",
        "GRAFT_BALLAST_BYTES": str(1 << 20),  # many folders of tests are kept for a while
        "GRAFT_WEIGHTS_CATALOG": "" if catalogue is None else str(catalogue),
    }
    log_path = data_folder.with_name(f"{data_folder.name}.log")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "serve"],
            env={**clean, **settings, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    return RunningService(url, data_folder, settings["GRAFT_DATABASE_URL"], log_path, process)
