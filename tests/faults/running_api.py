"""A real api alone, without workers, whose fault points are chosen while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from jobs.store.database import Database
from service.client import Graft
from service.free_port import free_port
from tests.faults.api_operations import ApiGround
from tests.faults.ground import FaultPoints, respawning
from tests.faults.history import History, PatientClient
from tests.waiting import until


@dataclass(frozen=True)
class Api:
    """A running api, its points, and what operations work with."""

    ground: ApiGround
    points: FaultPoints
    session: int
    history_path: Path


@contextmanager
def running_api(
    data_folder: Path, beside: Path, environment: Mapping[str, str] = {}
) -> Iterator[Api]:
    """Run an api on a data folder; its log and the history of its client lie in `beside`."""
    data_folder.mkdir(exist_ok=True)
    port = free_port("127.0.0.1")
    settings = {
        "GRAFT_DATA_DIR": str(data_folder),
        "GRAFT_PORT": str(port),
        "GRAFT_OFFLINE": "1",
        "GRAFT_FAULTS": "*=ask",
        "GRAFT_BALLAST_BYTES": "0",
        **environment,
    }
    database = Database(f"sqlite:///{data_folder / 'graft.db'}")
    log_path = beside / "api.log"
    with (
        respawning("tests.faults.api_process:run", environment=settings, log_path=log_path) as p,
        Graft(f"http://127.0.0.1:{port}") as graft,
    ):
        until(lambda: _answers(graft), 60.0, what=f"an api (see {log_path})")
        history_path = beside / "history.jsonl"
        client = PatientClient(graft, History(history_path), patience_seconds=20.0)
        ground = ApiGround(data_folder, beside, client, database)
        yield Api(ground, FaultPoints(data_folder / "run" / "faults"), p.pid, history_path)
    database.close()


def _answers(graft: Graft) -> bool:
    try:
        list(graft.models())
    except httpx2.TransportError:
        return False
    return True
