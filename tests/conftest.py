"""Fixtures that more than one tier needs; imports nothing that a bare GPU image lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; missing is a skip, and a failure with `CI=true`."""
    folder = Path(os.environ.get("GRAFT_SHARED", _REPOSITORY.parent / "shared"))
    if not (folder / "data" / "hymenoptera.zip").is_file():
        reason = f"the real images and weights are not at {folder} (set GRAFT_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
