"""A child logs as its worker was told to: with the ids of its job and of the request behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jobs import trail
from models_cache import logs

_CHILD = """
import json, logging, sys
from jobs.trail import followed
with followed(json.loads(sys.argv[1])):
    logging.getLogger("of.the.child").warning("three %s", "images")
    if len(sys.argv) > 2:
        raise RuntimeError("of the child")
"""
_TRAIL = {
    "facts": {"job_id": "job_1", "attempt": 3, "request_id": "r1"},
    "carrier": {},
    "log_format": "json",
    "log_level": "info",
    "traces_url": "",
    "version": "0",
}
_SPEC = {"kind": "ingest", "job_id": "job_1", "trail": _TRAIL}


def child(spec: object, *more: str) -> list[str]:
    command = [sys.executable, "-c", _CHILD, json.dumps(spec), *more]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == len(more)
    return done.stderr.splitlines()


def test_a_child_says_which_attempt_of_which_job_it_is() -> None:
    (line,) = map(json.loads, child(_SPEC))
    assert {"logger": "of.the.child", "message": "three images"}.items() <= line.items()
    assert {"job_id": "job_1", "attempt": 3, "request_id": "r1"}.items() <= line.items()


def test_an_error_that_ends_a_child_is_a_line_too() -> None:
    _, last = map(json.loads, child(_SPEC, "raise"))
    assert last["level"] == "critical"
    assert last["error"].endswith("RuntimeError: of the child")


def test_a_spec_without_a_trail_is_worked_on() -> None:
    assert child({"kind": "ingest", "job_id": "job_1"}) == ["three images"]


def test_a_job_is_traced_back_to_the_request_that_made_it() -> None:
    assert trail.origin() == {}
    with logs.about(request_id="r1"):
        assert trail.origin() == {"request_id": "r1"}
