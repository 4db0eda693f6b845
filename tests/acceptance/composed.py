"""The services of `docker/compose.yaml` as plain processes, where there is no container engine.

Commands, environment, order and health checks are those that compose itself reads from the file,
with the image's own environment from the Dockerfile. Only names of places are rewritten: `/data`,
`/tmp`, the secret's file, the database's host and the port. Where we may (root), each process has
what `read_only`, `tmpfs`, `cap_drop` and `no-new-privileges` mean: a mount namespace in which only
its folders can be written, and no capabilities. The user is ours, not the image's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docker_files import REPOSITORY, compose_services, stages
from tests.postgresql import PostgresqlServer

_CONFINE = """
set -e
mount --bind {data} {data}
mount --bind {temporary} {temporary}
mount -o remount,bind,ro /
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs -- {command}
"""
_READY_SECONDS = 120.0


@dataclass
class Composed:
    """Services of the compose file and the processes that stand for them.

    Args:
        services: As compose reads them.
        folder: Where data, temporary files, the secret and logs are.
        places: Values that are rewritten: from, to.
        overrides: Further environment of every process.
        processes: The running ones by service.
    """

    services: dict[str, dict[str, Any]]
    folder: Path
    places: Mapping[str, str]
    overrides: Mapping[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start a service behind those that it waits for."""
        service = self.services[name]
        for awaited in service.get("depends_on", {}):
            assert awaited == "postgres" or awaited in self.processes, f"{name} needs {awaited}"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.confined(_python(service["command"])),
                env=self._environment(service),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_healthy(self, name: str) -> None:
        """Repeat a service's health check until it passes."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self.is_healthy(name):
            assert time.monotonic() < deadline, f"{name} is not healthy"
            time.sleep(0.5)  # each check is a process of its own

    def is_healthy(self, name: str) -> bool:
        """Run a service's health check, as the engine would inside of its container."""
        assert self.processes[name].poll() is None, self.log(name)[-3000:]
        service = self.services[name]
        kind, *command = service["healthcheck"]["test"]
        assert kind == "CMD"
        environment = self._environment(service)
        check = subprocess.run(_python(command), env=environment, cwd=self.folder, check=False)
        return check.returncode == 0

    def stop(self, name: str) -> int:
        """Send SIGTERM and return the status; more than the grace of the file is a failure."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(_seconds(self.services[name]["stop_grace_period"]))

    def run(self, name: str, *command: str) -> str:
        """Run a command in a service's place, as `compose run --rm`; return what it prints."""
        done = subprocess.run(
            self.confined(_python(["graft", *command])),
            env=self._environment(self.services[name]),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def log(self, name: str) -> str:
        """Return what a service has logged."""
        return (self.folder / f"{name}.log").read_text()

    def _environment(self, service: Mapping[str, Any]) -> dict[str, str]:
        values = {**_image_environment(service["build"]["target"]), **service["environment"]}
        values = {name: self.places.get(value, value) for name, value in values.items()}
        kept = {name: os.environ[name] for name in ("LANG", "GRAFT_SHARED") if name in os.environ}
        values["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return {
            **kept,
            **values,
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(self.folder / "tmp"),
            **self.overrides,
        }

    def confined(self, command: list[str]) -> list[str]:
        """Return a command that runs another one confined, where we may."""
        if not can_confine():
            return command
        data, temporary = self.folder / "data", self.folder / "tmp"
        script = _CONFINE.format(
            data=shlex.quote(str(data)),
            temporary=shlex.quote(str(temporary)),
            command=shlex.join(command),
        )
        return ["unshare", "--mount", "sh", "-c", script]


def can_confine() -> bool:
    """Tell whether this user may make mount namespaces."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def composed(folder: Path, port: int, overrides: Mapping[str, str]) -> Iterator[Composed]:
    """Yield the services, none started but PostgreSQL; kill what still runs at the end."""
    for name in ("data", "tmp"):
        (folder / name).mkdir()
    password_file = folder / "database_password"
    password_file.write_text("pass:word@with/signs\n")
    services = compose_services(password_file, "compose.yaml")
    with closing(PostgresqlServer()) as server:
        socket_folder = _database_with_password(server, password_file.read_text().strip())
        places = {
            "/run/secrets/database_password": str(password_file),
            "postgresql+psycopg://graft@postgres/graft": (
                f"postgresql+psycopg://graft@/graft?host={socket_folder}"
            ),
            "/data": str(folder / "data"),
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - what is replaced
            "/tmp": str(folder / "tmp"),  # noqa: S108 - what is replaced
        }
        found = Composed(services, folder, places, {"GRAFT_PORT": str(port), **overrides})
        try:
            yield found
        finally:
            for process in found.processes.values():
                process.kill()
                process.wait()


def _database_with_password(server: PostgresqlServer, password: str) -> str:
    """Make user and database as the image of PostgreSQL does; return the socket's folder."""
    with server.connect() as connection:
        connection.execute("CREATE ROLE graft LOGIN")
        stored = connection.pgconn.encrypt_password(password.encode(), b"graft", b"scram-sha-256")
        connection.execute(b"ALTER ROLE graft PASSWORD '%s'" % stored)
        connection.execute("CREATE DATABASE graft OWNER graft")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text(f"local graft graft scram-sha-256\n{rules.read_text()}")
        connection.execute("SELECT pg_reload_conf()")
        # Its socket lies among its files, which are another user's: without capabilities of ours
        socket_folder = Path(connection.info.host)
    for folder in (socket_folder, socket_folder.parent):
        folder.chmod(0o711)
    return str(socket_folder)


def _image_environment(target: str) -> dict[str, str]:
    """Return what ENV steps of an image and of the stages below it set."""
    found: dict[str, str] = {}
    every = stages()
    name = target
    while name in every:
        for line in every[name].all_of("ENV"):
            found = {**dict(part.split("=", 1) for part in shlex.split(line)), **found}
        name = every[name].base
    return found


def _python(command: list[str]) -> list[str]:
    """Return a command of the image as one of this environment."""
    assert command[0] == "graft"
    return [sys.executable, "-P", "-m", "service.cli.main", *command[1:]]


def _seconds(duration: str) -> float:
    """Return the seconds of a duration as compose writes it, such as `1m0s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+)([hms])", duration)
    return float(sum(int(number) * units[unit] for number, unit in parts))
