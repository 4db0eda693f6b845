"""`graft serve | api | inference | worker`: the composition roots of four processes, and `ping`.

Each imports what it needs when it runs, and so starts before the others' imports are paid for.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import uuid
from contextlib import ExitStack
from types import FrameType

import typer

from jobs.backup.unfinished import require_whole
from models_cache import logs, tracing
from service.cli.configuration import load_settings
from service.cli.ping import ping
from service.settings import Settings, child_environment, visible_devices
from service.version import VERSION

app = typer.Typer(name="graft", add_completion=False, pretty_exceptions_enable=False)


def add_to(all_commands: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, api, inference, worker, ping):
        all_commands.command()(command)


def serve() -> None:
    """Run the service: api, inference and worker, restarted when they die. Ctrl-C ends it."""
    from service.free_port import free_port
    from service.supervisor import run_supervisor

    settings = load_settings()
    require_whole(settings.data_dir)
    os.umask(0o077)
    logs.begin(settings.log_format, settings.log_level)
    environment = child_environment(settings) | {
        "GRAFT_PORT": str(settings.port or free_port(settings.host))
    }
    url = f"http://{settings.host}:{environment['GRAFT_PORT']}"
    if settings.log_format == "text":
        print(_welcome(url, settings), flush=True)
    commands = {
        name: [sys.executable, "-P", "-m", "service.cli.main", name]
        for name in ("inference", "worker", "api")
    }
    raise typer.Exit(run_supervisor(commands, environment))


def api() -> None:
    """Run the api process alone."""
    from service.access_errors import DoorsOpen
    from service.app import create_app
    from service.connection_limits import within_open_files
    from service.http_server import run_server
    from service.middleware import RequestLog
    from service.secure_answers import SecureAnswers
    from service.supervisor import MISCONFIGURED_STATUS

    settings = load_settings()
    _prepare(settings, "api")
    try:
        application = create_app(settings)
    except DoorsOpen as error:
        print(f"graft: {error}", file=sys.stderr)
        raise typer.Exit(MISCONFIGURED_STATUS) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after draining; the process shall end with status 0
        signal.signal(number, lambda *_: None)
    limits = within_open_files(settings.connection_limits)
    logged = RequestLog(SecureAnswers(application), application.state.services.metrics.saw_request)
    _keep_what_is_loaded()
    run_server(logged, settings.host, settings.port, limits, settings.trusted_proxies)


def inference() -> None:
    """Run the inference process alone."""
    # Before torch is imported: its idle threads sleep instead of taking a core from what decodes
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from models_cache import inference as process

    settings = load_settings()
    _prepare(settings, "inference")
    _keep_what_is_loaded()
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
    from jobs.collector import Collector
    from jobs.executors.local import LocalExecutor
    from jobs.gpus import visible_gpus
    from jobs.presence import Presence
    from jobs.store.database import Database
    from jobs.webhooks.sender import SenderLimits, WebhookSender
    from jobs.worker import Worker
    from models_cache import faults
    from models_cache.blobs import BlobStore

    settings = load_settings()
    _prepare(settings, "worker")
    faults.arm(settings.faults, settings.data_dir / "run" / "faults")
    database = Database(settings.database_address, settings.ballast)
    database.migrate()
    executor = LocalExecutor(child_environment(settings))
    executor.warm()
    presence = Presence(
        database,
        settings.data_dir / "run" / "workers",
        f"worker_{uuid.uuid4().hex}",
        settings.device,
    )
    collector = Collector(
        database, settings.data_dir, settings.retention, settings.gc_interval_seconds
    )
    stop = _StopFlag()
    collector.start()
    machine = settings.machine(VERSION, visible_gpus(visible_devices()))
    sender = WebhookSender(
        database,
        settings.egress,
        SenderLimits(
            timeout_seconds=settings.webhook_timeout_seconds,
            first_wait_seconds=settings.webhook_retry_seconds,
        ),
    )
    sender.start()
    Worker(
        database,
        BlobStore(settings.data_dir / "blobs"),
        executor,
        machine,
        presence,
        settings.worker_limits(len(machine.usable_gpus)),
    ).run(stop.is_set)
    sender.stop()
    collector.stop()
    database.close()


add_to(app)
NAMES = frozenset({"serve", "api", "inference", "worker", "ping"})


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


def _keep_what_is_loaded() -> None:
    """Take modules and what they made out of garbage collections: all of it stays.

    A full collection looked at 340,000 objects of the inference process for 0.18 s, and at 150,000
    of the api for 0.09 s, while requests waited.
    """
    gc.freeze()


def _prepare(settings: Settings, name: str) -> None:
    """Keep every file to this user, log to standard error, collect spans until the end.

    Raises:
        RestoreUnfinished: The data folder is not whole.
    """
    require_whole(settings.data_dir)
    os.umask(0o077)
    logs.begin(settings.log_format, settings.log_level)
    until_the_end = ExitStack()
    until_the_end.enter_context(tracing.collected(settings.traces_url, f"graft-{name}", VERSION))
    atexit.register(until_the_end.close)


def _welcome(url: str, settings: Settings) -> str:
    return f"""\
Graft {VERSION} listens on {url} (API: {url}/docs) and keeps its data in {settings.data_dir}

  curl --data-binary @photos.zip "{url}/v1/datasets?name=my-photos"
  curl --json '{{"dataset": "ds_...", "recipe": "head"}}' "{url}/v1/jobs"
  curl --data-binary @one.jpg "{url}/v1/models/my-photos/predict"
"""
