"""What one process may know about another, and how it dies with it (Linux).

Everything here works on pidfds: a process number may be given to another process once its owner
was reaped, a pidfd never. Every process that Graft starts has its own group, and is killed by the
kernel when the thread that started it ends (PDEATHSIG); so nothing outlives a SIGKILL of its owner.

Run as a script, this file becomes another program that dies with its parent: see `spawn`. It
imports the standard library only, so that this costs a few milliseconds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # Linux 6.9; <linux/pidfd.h>
_AUTOGROUP = "/proc/self/autogroup"
_AUTOGROUP_TRIALS = 4
_AUTOGROUP_SECONDS = 0.11  # the kernel takes one change in a tenth of a second
_EXEC_FAILED_STATUS = 127  # as a shell says that a command cannot be run

_forking_pid: int | None = None  # the process that `bind_forks` speaks for; None: not called


def die_with_parent(expected_parent_pid: int | None) -> None:
    """Have the kernel kill this process when its parent dies; die now if it is dead already.

    The signal comes when the *thread* that forked ends: parents fork from their main thread.

    Args:
        expected_parent_pid: Who started this process; None if there is nothing to compare with,
            which leaves a parent that died before this call unnoticed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if expected_parent_pid is not None and os.getppid() != expected_parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def bind_forks() -> None:
    """Have every process forked from this one, and those forked from them, die with its parent.

    PDEATHSIG is not inherited. This covers `os.fork` and `multiprocessing` by fork, not programs
    started with `subprocess`. A fork made by a thread dies when that thread ends.
    """
    global _forking_pid  # a fact of the process, like the hooks themselves
    if _forking_pid is None:
        os.register_at_fork(after_in_child=_bind_fork)
    _forking_pid = os.getpid()


def _bind_fork() -> None:
    global _forking_pid  # see `bind_forks`
    die_with_parent(_forking_pid)
    _forking_pid = os.getpid()


def own_group() -> None:
    """Make this process the leader of a process group, unless it is one."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def yield_cpu(nice: int) -> None:
    """Add to the niceness of this process; above 0 it yields the CPU to those that serve.

    Linux may share the CPU by session first and by niceness only within one (`sched_autogroup`,
    where control groups do not share it): so the session yields as much. Its other processes, a
    fork server and what it has forked, do so too.
    """
    niceness = os.nice(nice)
    if nice == 0:
        return
    for _ in range(_AUTOGROUP_TRIALS):
        try:
            with open(_AUTOGROUP, "r+") as group:  # noqa: PTH123 - pathlib takes 5 ms to import
                if not group.read().endswith(f" nice {niceness}\n"):
                    group.write(str(niceness))
        except BlockingIOError:  # another one was written a moment ago: the kernel spaces them
            time.sleep(_AUTOGROUP_SECONDS)
        except OSError:  # no such kernel, or it may not be written here: niceness alone, then
            return
        else:
            return


class ProcessHandle:
    """A process, held by pidfd; the owner calls `close` when done with it.

    Args:
        pid: Its number.
        pidfd: An open pidfd of it, from now on owned by this object.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    @classmethod
    def of(cls, pid: int) -> ProcessHandle:
        """Hold the process that has this number now.

        Raises:
            ProcessLookupError: There is none.
        """
        return cls(pid, os.pidfd_open(pid))

    def fileno(self) -> int:
        """Return the pidfd: it becomes readable when the process ends."""
        return self._pidfd

    def alive(self) -> bool:
        """Tell whether it still runs; a zombie does not."""
        return not self.wait(0.0)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it has ended, whoever reaps it; False if it still runs after the timeout."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_seconds) * 1000))

    def signal(self, number: int) -> bool:
        """Signal this process alone; False if it was reaped."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def kill_group(self, number: int) -> bool:
        """Signal every process of its group, of which it must be the leader.

        Returns:
            False if there is no such group any more.
        """
        try:
            signal.pidfd_send_signal(self._pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self.alive() and self._kill_group_by_number(number)  # Linux before 6.9
        return True

    def reap(self) -> int | None:
        """Reap this child of ours if it has ended, after killing what is left of its group.

        Returns:
            Its exit status, or the negated number of the signal that killed it; None if it runs.

        Raises:
            ChildProcessError: It is not our child, or was reaped before.
        """
        how = os.WEXITED | os.WNOHANG
        if os.waitid(os.P_PIDFD, self._pidfd, how | os.WNOWAIT) is None:
            return None
        self._kill_group_by_number(signal.SIGKILL)  # the zombie keeps its number from reuse
        ended = os.waitid(os.P_PIDFD, self._pidfd, how)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def close(self) -> None:
        """Close the pidfd; the process is left as it is."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _kill_group_by_number(self, number: int) -> bool:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a program gets from the process that starts it.

    Args:
        output: Descriptor of its standard output and error; None for ours.
        nice: Added to our niceness; above 0 it yields the CPU to those that serve.
        descriptors: Further descriptors it keeps, by their numbers.
    """

    output: int | None = None
    nice: int = 0
    descriptors: tuple[int, ...] = ()


def spawn(
    command: Sequence[str], environment: Mapping[str, str], inherited: Inherited | None = None
) -> ProcessHandle:
    """Start a program in its own session and group that dies with this process.

    Between fork and exec nothing of ours runs (unsafe with threads): this file, run as a script,
    asks for the signal, compares its parent and becomes the program.

    Args:
        command: Program and arguments.
        environment: All of its environment.
        inherited: What else it gets; by default our output and niceness.

    Returns:
        The process; the caller reaps it.

    Raises:
        RuntimeError: Not called from the main thread, whose end is the end of the process.
    """
    if threading.get_native_id() != os.getpid():
        raise RuntimeError("start processes from the main thread: they die with their thread")
    inherited = inherited or Inherited()
    owner, nice = str(os.getpid()), str(inherited.nice)
    child = subprocess.Popen(  # noqa: S603 - our own commands, no shell
        [sys.executable, "-I", "-S", __file__, owner, nice, *command],
        stdin=subprocess.DEVNULL,
        stdout=inherited.output,
        stderr=inherited.output,
        env=dict(environment),
        pass_fds=inherited.descriptors,
        start_new_session=True,
    )
    try:
        handle = ProcessHandle.of(child.pid)
    except OSError:  # no descriptors left: nobody could watch it
        child.kill()
        child.wait()
        raise
    child.returncode = 0  # reaped by `reap` alone: Popen would take the status when collected
    return handle


def _become(owner_pid: int, nice: int, command: list[str]) -> None:
    die_with_parent(owner_pid)  # kept across exec
    yield_cpu(nice)
    with suppress(FileNotFoundError, PermissionError):
        os.execvp(command[0], command)  # noqa: S606 - the point of this script
    sys.stderr.write(f"{command[0]} cannot be run\n")
    sys.exit(_EXEC_FAILED_STATUS)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
