"""Imports a module once, then runs one of its functions in forks: a killed one is back at once.

    python -m tests.faults.respawner MODULE:FUNCTION [ARGUMENT ...]

Each fork is the real process with the real signals, without the second that importing takes. It
dies with this process, which ends at SIGTERM, when its fork has ended.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from types import FrameType

_PR_SET_PDEATHSIG = 1
_BACKOFF_SECONDS = 0.05  # of one that cannot begin


class Respawner:
    """Keeps one fork running.

    Args:
        place: `module:function`.
        arguments: Of the function.
    """

    def __init__(self, place: str, arguments: list[str]) -> None:
        module, _, function = place.partition(":")
        self._function = getattr(importlib.import_module(module), function)
        self._arguments = arguments
        self._child = 0
        self._stopping = False

    def run(self) -> int:
        """Fork again and again, however forks end; returns the status of the last one."""
        _die_with_parent()
        signal.signal(signal.SIGTERM, self._stop)
        while True:
            self._child = os.fork()
            if self._child == 0:
                self._be_the_child()
            time.sleep(_BACKOFF_SECONDS)
            _, status = os.waitpid(self._child, 0)
            if self._stopping:
                return os.waitstatus_to_exitcode(status)

    def _be_the_child(self) -> None:
        status = 1
        try:
            _die_with_parent()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._function(*self._arguments)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001 - a fork must never return into the loop
            traceback.print_exc()
        finally:
            os._exit(status)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        os.kill(self._child, signal.SIGTERM)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(Respawner(sys.argv[1], sys.argv[2:]).run() & 0xFF)
