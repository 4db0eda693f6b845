"""When an attempt should end early: a signal asked for it, or its time is over."""

from __future__ import annotations

import signal
import time
from types import FrameType

from jobs.errors import TimeLimitTooShort

EXIT_STATUS = 75  # EX_TEMPFAIL: stopped on request, goes on from its checkpoint


class StoppedOnRequest(Exception):
    """SIGTERM arrived; what matters is on disk."""


class Interruption:
    """Asked between steps and batches whether to go on.

    Args:
        limit_seconds: Training time allowed over all attempts; None for no limit.
        spent_seconds: What earlier attempts used of it, from their last checkpoint.
    """

    def __init__(self, limit_seconds: float | None, spent_seconds: float = 0.0) -> None:
        self._limit_seconds = limit_seconds
        self._spent_seconds = spent_seconds
        self._started = time.monotonic()
        self._signalled = False
        self.phase = ""  # named in the error of a limit that came too early
        self.has_model = False  # from then on a limit ends the training, not the job

    def listen(self) -> None:
        """Take SIGTERM as a request to stop; only from the main thread."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def requested(self) -> bool:
        """Whether someone asked to stop."""
        return self._signalled

    @property
    def elapsed_seconds(self) -> float:
        """Time used by this attempt and those it goes on from."""
        return self._spent_seconds + time.monotonic() - self._started

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed."""
        return self._limit_seconds is not None and self.elapsed_seconds >= self._limit_seconds

    def resume_after(self, spent_seconds: float) -> None:
        """Count the time of the attempts before this one."""
        self._spent_seconds = spent_seconds

    def poll(self) -> None:
        """Leave a phase between two of its batches.

        Raises:
            StoppedOnRequest: SIGTERM arrived.
            TimeLimitTooShort: The time is over and there is no model yet.
        """
        if self._signalled:
            raise StoppedOnRequest
        if self._limit_seconds is not None and self.out_of_time and not self.has_model:
            raise TimeLimitTooShort(self._limit_seconds, self.phase)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
