"""A real api process for tests, alone: no worker, no inference; its rows are the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx2

from jobs.issuing import Issued, Wish, issue
from jobs.keys import Limits, Scope
from jobs.store.database import Database
from models_cache.blobs import BlobStore
from service.free_port import free_port
from tests.databases import database_url
from tests.waiting import until

UNLIMITED = Limits()


@dataclass(frozen=True)
class Api:
    """A started api process, and the data that it works on.

    Args:
        url: Where it listens.
        data_folder: Its state.
        log_path: What it writes about itself.
        database: The same that it uses.
    """

    url: str
    data_folder: Path
    log_path: Path
    database: Database

    @property
    def blobs(self) -> BlobStore:
        """Its blobs."""
        return BlobStore(self.data_folder / "blobs")

    def key(
        self,
        project: str = "default",
        scope: Scope = Scope.ADMIN,
        *,
        limits: Limits = UNLIMITED,
        lifetime: timedelta | None = None,
    ) -> Issued:
        """Make a key as `graft keys create` does."""
        with self.database.write() as connection:
            return issue(connection, Wish(project, "test", scope, limits, lifetime))

    def client(self, secret: str | None = None, *, kept_connections: int = 0) -> httpx2.Client:
        """Return a client that sends a key, or none.

        The service closes a connection on which it left a body unread: none is kept by default.
        """
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        limits = httpx2.Limits(max_keepalive_connections=kept_connections)
        return httpx2.Client(
            base_url=self.url, headers=headers, timeout=30, trust_env=False, limits=limits
        )


def clean_environment() -> dict[str, str]:
    """Return this process's environment without settings of a service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}


def settings_of(data_folder: Path) -> dict[str, str]:
    """Return the environment in which a command works on a folder and its database."""
    where = {"GRAFT_DATA_DIR": str(data_folder), "GRAFT_DATABASE_URL": database_url(data_folder)}
    return {**clean_environment(), **where}


@contextmanager
def running_api(data_folder: Path, environment: Mapping[str, str] = {}) -> Iterator[Api]:
    """Run `graft api` until the block ends."""
    data_folder.mkdir(parents=True, exist_ok=True)
    port = free_port("127.0.0.1")
    settings = {**settings_of(data_folder), "GRAFT_PORT": str(port), "GRAFT_OFFLINE": "1"}
    log_path = data_folder.with_name(f"{data_folder.name}.log")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "api"],
            env={**settings, **environment},
            stdout=log,
            stderr=log,
        )
    database = Database(database_url(data_folder))
    try:
        api = Api(f"http://127.0.0.1:{port}", data_folder, log_path, database)
        with api.client() as client:
            until(lambda: _is_up(process, client), 60, what=log_path.read_text())
        yield api
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log_path.read_text()[-4000:]
    finally:
        database.close()
        process.kill()
        process.wait()


def _is_up(process: subprocess.Popen[bytes], client: httpx2.Client) -> bool:
    assert process.poll() is None, "the api ended while it started"
    with suppress(httpx2.TransportError):
        return client.get("/healthz").status_code == 200
    return False
