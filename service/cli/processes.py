"""`graft serve | api | inference | worker`: the composition roots of the four processes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from types import FrameType

import typer
import uvicorn

from jobs.executors.local import LocalExecutor
from jobs.gpus import visible_gpus
from jobs.presence import Presence
from jobs.store.database import Database
from jobs.worker import Worker
from models_cache import faults
from models_cache.blobs import BlobStore
from service.app import create_app
from service.cli.configuration import load_settings
from service.free_port import free_port
from service.middleware import RequestLog
from service.settings import Settings, child_environment, visible_devices
from service.supervisor import run_supervisor
from service.version import VERSION

log = logging.getLogger("graft")

#: Bound on headers and request line; the parser answers 400 beyond it.
_MAX_HEADER_BYTES = 32 << 10


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(api)
    app.command()(inference)
    app.command()(worker)


def serve() -> None:
    """Run the service: api, inference and worker, restarted when they die. Ctrl-C ends it."""
    settings = load_settings()
    os.umask(0o077)
    environment = child_environment(settings) | {
        "GRAFT_PORT": str(settings.port or free_port(settings.host))
    }
    url = f"http://{settings.host}:{environment['GRAFT_PORT']}"
    print(_welcome(url, settings), flush=True)
    commands = {
        name: [sys.executable, "-P", "-m", "service.cli.main", name]
        for name in ("inference", "worker", "api")
    }
    raise typer.Exit(run_supervisor(commands, environment))


def api() -> None:
    """Run the api process alone."""
    settings = load_settings()
    _prepare(settings)
    app = create_app(settings)
    uvicorn.run(
        RequestLog(app, app.state.services.metrics.saw_request),
        host=settings.host,
        port=settings.port,
        http="h11",  # bounds headers and refuses two Host headers, unlike httptools
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=8,
        timeout_keep_alive=75,
    )


def inference() -> None:
    """Run the inference process alone."""
    # Before torch is imported: its idle threads sleep instead of taking a core from what decodes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from models_cache import inference as process  # noqa: PLC0415 - it imports torch

    settings = load_settings()
    _prepare(settings)
    process.serve(
        process.InferenceConfig(
            data_folder=settings.data_dir,
            bind=settings.resolved_inference_url,
            threads=settings.resolved_serve_threads,
            device=settings.device,
            cache_bytes=settings.cache_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_batch_images=settings.max_batch_images,
            max_accepted_images=settings.max_queued_images,
        )
    )


def worker() -> None:
    """Run a worker process alone."""
    settings = load_settings()
    _prepare(settings)
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    database = Database(settings.resolved_database_url)
    database.migrate()
    executor = LocalExecutor(child_environment(settings))
    executor.warm()
    presence = Presence(
        database,
        settings.data_dir / "run" / "workers",
        f"worker_{uuid.uuid4().hex}",
        settings.device,
    )
    stop = _StopFlag()
    machine = settings.machine(VERSION, visible_gpus(visible_devices()))
    Worker(
        database,
        BlobStore(settings.data_dir / "blobs"),
        executor,
        machine,
        presence,
        settings.worker_limits(len(machine.usable_gpus)),
    ).run(stop.is_set)
    database.close()


class _StopFlag:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self._set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._set = True

    def is_set(self) -> bool:
        """Tell whether the process should end."""
        return self._set


def _prepare(settings: Settings) -> None:
    """Keep every file to this user, and log to standard error."""
    os.umask(0o077)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("httpx2", "httpcore2", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _welcome(url: str, settings: Settings) -> str:
    return f"""\
Graft {VERSION} listens on {url} (API: {url}/docs) and keeps its data in {settings.data_dir}

  curl --data-binary @photos.zip "{url}/v1/datasets?name=my-photos"
  curl --json '{{"dataset": "ds_...", "recipe": "head"}}' "{url}/v1/jobs"
  curl --data-binary @one.jpg "{url}/v1/models/my-photos/predict"
"""
