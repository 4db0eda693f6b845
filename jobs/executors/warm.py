"""The worker's end of one fork server (`jobs.forkserver`, which describes the messages)."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import forkserver, processes


@dataclass(slots=True, eq=False)
class Forked:
    """One child of the server.

    Args:
        process: The child, once it exists.
        status: How it ended, as `ProcessHandle.reap` says it; it is reaped.
        refused: Why the server could not fork it.
    """

    process: processes.ProcessHandle | None = None
    status: int | None = None
    refused: str | None = None


class WarmServer:
    """A fork server that this object starts; never blocks, `pump` moves everything on.

    Args:
        environment: All environment variables of the server and its children.
        target: What a child does: `module:function` of the path of a spec.
        preload: Modules to import before the first fork, besides the target's.
    """

    def __init__(self, environment: Mapping[str, str], target: str, preload: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            options = ["--target", target, *(f"--preload={module}" for module in preload)]
            self.process = processes.spawn(
                [sys.executable, "-P", "-m", "jobs.forkserver", str(theirs.fileno()), *options],
                environment,
                processes.Inherited(descriptors=(theirs.fileno(),)),
            )
        ours.setblocking(False)
        self._socket = ours
        self._children: dict[int, Forked] = {}
        self._waiting: dict[int, bytes] = {}  # requests kept until the server has imported all
        self._last_id = 0
        self.ready = False
        self.status: int | None = None  # how the server ended; None while it lives

    @property
    def dead(self) -> bool:
        """Whether the server ended; then all its messages were read."""
        return self.status is not None

    def fileno(self) -> int:
        """Return the socket's descriptor: it becomes readable when `pump` has something to do."""
        return self._socket.fileno()

    def start(self, spec: Path, log: Path, nice: int) -> int:
        """Ask for a child, at once or when the server is ready; return our name for it."""
        self._last_id += 1
        request = {"start": self._last_id, "spec": str(spec), "log": str(log), "nice": nice}
        self._children[self._last_id] = Forked()
        self._waiting[self._last_id] = json.dumps(request).encode()
        self._send_waiting()
        return self._last_id

    def child(self, identity: int) -> Forked:
        """Return what is known of a child."""
        return self._children[identity]

    def withdraw(self, identity: int) -> bool:
        """Take back a request that was not sent yet; False if it was."""
        return self._waiting.pop(identity, None) is not None

    def forget(self, identity: int) -> None:
        """Give up a child that has ended; a dead server closes after its last."""
        process = self._children.pop(identity).process
        if process is not None:
            process.close()
        if self.dead and not self._children:
            self.close(0.0)

    def pump(self) -> None:
        """Read what the server said, send what waits, notice its death."""
        if self.dead:
            return
        status = self.process.reap()  # first: what it said before it died is still read below
        if not self._read_all() and status is None:
            self.kill()  # it closed the socket: it is ending
        self._send_waiting()
        self.status = status

    def kill(self) -> None:
        """Kill the server, and so all its children."""
        self.process.kill_group(signal.SIGKILL)

    def close(self, timeout_seconds: float) -> None:
        """Have the server kill its children and end; kill it after the timeout. Idempotent."""
        self._socket.close()
        if not self.dead:
            if not self.process.wait(timeout_seconds):
                self.kill()
                self.process.wait(timeout_seconds)
            self.status = self.process.reap()
        self.process.close()
        for child in self._children.values():
            if child.process is not None:
                child.process.close()

    def _send_waiting(self) -> None:
        if not self.ready:
            return
        for identity, request in list(self._waiting.items()):
            try:
                self._socket.send(request)
            except (BlockingIOError, ConnectionError):
                return  # full: later; gone: `pump` will notice
            del self._waiting[identity]

    def _read_all(self) -> bool:
        """Read until nothing is there; False when the server closed its end."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._socket, forkserver.MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not message:
                return False
            self._hear(json.loads(message), descriptors)

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message:
            case {"ready": True}:
                self.ready = True
            case {"started": identity, "pid": pid}:
                self._children[identity].process = processes.ProcessHandle(pid, descriptors[0])
            case {"refused": identity, "reason": reason}:
                self._children[identity].refused = reason
            case {"exited": identity, "status": status}:
                self._children[identity].status = status
            case _:
                raise AssertionError(message)
