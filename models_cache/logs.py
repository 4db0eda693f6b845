"""How every process logs: lines for people or JSON objects, with what each line is about.

A line about a request has its `request_id`, one about a job its `job_id` and `attempt`, whichever
module writes it: `about` sets them for a block. Passwords in addresses are masked in every line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

Fact = str | int | float

_NOISY = ("httpx2", "httpcore2", "alembic", "opentelemetry", "urllib3")
_PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]*@")
_facts: ContextVar[Mapping[str, Fact]] = ContextVar("facts", default={})  # noqa: B039 - never changed


def begin(style: str, level: str) -> None:
    """Log to standard error from now on, errors that end the process included.

    Args:
        style: `text` or `json`.
        level: Least severe line, such as `info`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


@contextmanager
def about(**facts: Fact) -> Iterator[None]:
    """Have every line of a block, and of tasks and threads begun in it, say these facts."""
    token = _facts.set({**_facts.get(), **facts})
    try:
        yield
    finally:
        _facts.reset(token)


def facts() -> Mapping[str, Fact]:
    """Return what lines written here are about."""
    return _facts.get()


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return a line, and the lines of a traceback."""
        return without_passwords(super().format(record))


class JsonLines(logging.Formatter):
    """One object per record: `time`, `level`, `logger`, `message`, facts, `error` (a traceback)."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts.get(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        text = {name: _masked(value) for name, value in line.items()}
        return json.dumps(text, ensure_ascii=False, default=str)


def without_passwords(text: str) -> str:
    """Return a text with `***` for the password of each address in it."""
    return _PASSWORD.sub(r"\1:***@", text) if "://" in text else text


def _masked(value: object) -> object:
    return without_passwords(value) if isinstance(value, str) else value


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logging.getLogger(__name__).critical("the process ends", exc_info=(kind, error, traceback))
