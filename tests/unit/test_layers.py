"""What a process must not have loaded, seen by looking."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "from service.app import create_app",
        "import service.cli.main, service.cli.commands",
        "import service.supervisor",
        "import service.client",
        "import jobs.worker, jobs.executors.local",
        "import jobs.datasets.ingest",
        "import jobs.download",
    ],
)
def test_process_without_a_network_to_run_imports_no_torch(statement: str) -> None:
    assert not _modules_after(statement) & {"torch", "torchvision"}


@pytest.mark.parametrize(
    "statement",
    [
        "import jobs.run",
        "import models_cache.predictor",
        "import tests.conftest, tests.gpu.test_training_on_gpu, tests.gpu.test_inference_on_gpu",
    ],
)
def test_what_runs_on_a_bare_gpu_image_needs_no_web_package(statement: str) -> None:
    web = {
        "psycopg",
        "psutil",
        "fastapi",
        "starlette",
        "pydantic",
        "uvicorn",
        "sqlalchemy",
        "typer",
        "rich",
        "httpx2",
    }
    assert not _modules_after(statement) & web


def test_a_process_of_the_service_starts_without_what_others_need() -> None:
    loaded = _modules_after("import service.cli.main")
    assert not loaded & {"fastapi", "sqlalchemy", "alembic", "httpx2", "uvicorn", "torch"}
