"""A process that has torch imported and forks attempts, so that each starts in milliseconds.

Nothing *runs* here: a fork after one tensor operation inherits locks of a thread pool that does
not exist in the child, and hangs. The standard library's fork server is not used because it leaves
its children alive when its owner is killed.

    python -m jobs.forkserver FD [--target MODULE:FUNCTION] [--preload MODULE]...

FD is one end of a socket pair (SOCK_SEQPACKET: a message is one JSON object). The owner says

    {"start": id, "spec": path, "log": path, "nice": n}

and hears `{"ready": true}` once everything is imported, then for each start `{"started": id,
"pid": n}` with a pidfd of the child, or `{"refused": id, "reason": text}`; and, when the child
was reaped and its group killed, `{"exited": id, "status": n}` (a negated signal number where a
signal killed it). A closed socket or SIGTERM: all children are killed and the server ends. If the
server is killed, the kernel kills the children.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jobs import processes

DEFAULT_TARGET = "jobs.run:main"
DEFAULT_PRELOAD = ("torch", "torchvision", "torchvision.transforms.v2")
MESSAGE_BYTES = 1 << 16  # longer than any message: it holds two paths

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

Target = Callable[[str], None]


class ForkServer:
    """Forks one child per request and tells its owner how each ends.

    Args:
        owner: The server's end of the socket pair.
        target: What a child does, given the path of its spec.
    """

    def __init__(self, owner: socket.socket, target: Target) -> None:
        self._owner = owner
        self._target = target
        self._pid = os.getpid()
        self._children: dict[int, processes.ProcessHandle] = {}  # by the owner's id
        self._selector = selectors.DefaultSelector()
        self._selector.register(owner, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer until the owner closes its end; then kill what still runs."""
        try:
            self._tell({"ready": True})
            while self._turn():
                pass
        except ConnectionError:  # the owner is gone: the same as a closed socket
            return
        finally:
            self._kill_children()

    def _turn(self) -> bool:
        for key, _ in self._selector.select():
            if key.fileobj is self._owner:
                message = self._owner.recv(MESSAGE_BYTES)
                if not message:
                    return False
                self._start(json.loads(message))
            else:
                self._reap(key.data)
        return True

    def _start(self, request: dict[str, Any]) -> None:
        identity: int = request["start"]
        # A stop signal handled between fork and reset would run the server's clean-up in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_child(request)
        except OSError as error:
            self._tell({"refused": identity, "reason": f"fork failed: {error.strerror}"})
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        with suppress(OSError):  # the child does it too: whoever is first, it has a group from here
            os.setpgid(pid, pid)
        child = processes.ProcessHandle.of(pid)
        self._children[identity] = child
        self._selector.register(child, selectors.EVENT_READ, identity)
        self._tell({"started": identity, "pid": pid}, child.fileno())

    def _reap(self, identity: int) -> None:
        child = self._children[identity]
        status = child.reap()
        if status is None:
            return
        del self._children[identity]
        self._selector.unregister(child)
        child.close()
        self._tell({"exited": identity, "status": status})

    def _tell(self, message: dict[str, Any], *descriptors: int) -> None:
        socket.send_fds(self._owner, [json.dumps(message).encode()], descriptors)

    def _kill_children(self) -> None:
        for child in self._children.values():
            child.kill_group(signal.SIGKILL)
        for child in self._children.values():
            child.wait(1.0)  # killed: only a process stuck in the kernel takes longer
            child.reap()

    def _run_child(self, request: dict[str, Any]) -> NoReturn:
        status = 1
        try:
            self._leave_server()
            processes.own_group()
            processes.die_with_parent(self._pid)
            processes.bind_forks()
            processes.yield_cpu(request["nice"])
            _log_to(Path(request["log"]))
            gc.enable()
            self._target(request["spec"])
            status = 0
        except SystemExit as error:
            status = _status_of(error)
        except BaseException as error:  # noqa: BLE001 - the process boundary: logged, and ends
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def _leave_server(self) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        self._selector.close()
        self._owner.close()
        for sibling in self._children.values():
            sibling.close()


def _log_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _status_of(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


def _load(target: str) -> Target:
    module, _, function = target.partition(":")
    loaded: Target = getattr(importlib.import_module(module), function)
    return loaded


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Import, then serve; see the module."""
    parser = argparse.ArgumentParser(prog="python -m jobs.forkserver")
    parser.add_argument("fd", type=int)
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--preload", action="append", default=[])
    options = parser.parse_args(arguments)
    gc.disable()  # holes left by a collection would be filled, and pages copied, after the fork
    for module in options.preload:
        importlib.import_module(module)
    target = _load(options.target)
    gc.freeze()
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    os.set_inheritable(options.fd, False)
    with socket.socket(fileno=options.fd) as owner:
        ForkServer(owner, target).serve()


if __name__ == "__main__":
    main()
