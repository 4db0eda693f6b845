"""How one backbone of a race reports: into the progress of the whole race."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.progress import ProgressWriter


class LaneProgress(ProgressWriter):
    """Writes warnings and logs as they are; counts images for the race; keeps the rest back.

    Args:
        path: The attempt's progress file.
        name: The backbone, named in its warnings.
        report: Called with images embedded, and how many there are.
    """

    def __init__(self, path: Path, name: str, report: Callable[[int, int], None]) -> None:
        super().__init__(path)
        self._name = name
        self._report = report
        self._in_phase = ""
        self.receipt: dict[str, Any] = {}
        self.embedded = False  # in this attempt; False if all features were in the cache

    def phase(self, phase: str) -> None:
        """Remember which phase it is: the race has phases of its own."""
        self._in_phase = phase

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Pass on how many images the backbone has seen."""
        del unit
        if self._in_phase == "features" and total is not None:
            self.embedded = self.embedded or done < total
            self._report(done, total)

    def resolved(self, resolved: dict[str, Any]) -> None:
        """Keep the receipt: the race's names all of them."""
        self.receipt = resolved

    def warning(self, code: str, message: str) -> None:
        """Report a warning with the backbone's name."""
        super().warning(code, f"{self._name}: {message}")
