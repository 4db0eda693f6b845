"""The only reader of the environment: every `GRAFT_` variable, its default and its unit.

`docs/settings.md` lists them; a test keeps the two equal. Lower layers get values, never this
object.
"""

from __future__ import annotations

import os
from functools import cached_property
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.datasets.limits import IngestLimits
from jobs.keys import Limits
from jobs.specs import Machine
from jobs.store.ballast import Ballast
from jobs.worker_limits import Retention, WorkerLimits
from models_cache.egress_policy import EgressPolicy
from service.connection_limits import ConnectionLimits
from service.secret_files import secret_in, with_password

CommaSeparated = Annotated[tuple[str, ...], NoDecode]
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_LISTS = ("weights_sources", "weights_catalog", "egress_allow", "trusted_proxies")
_MOST_DECODERS = 8
_REQUESTS_PER_MINUTE = 6000  # where others can reach the service
_DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,2})?)$"


def _default_data_folder() -> Path:
    return Path(platformdirs.user_data_path("graft"))


class Settings(BaseSettings):
    """Values for every process; frozen once read."""

    model_config = SettingsConfigDict(
        env_prefix="GRAFT_", env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="Address the api listens on.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port of the api; 0 lets the kernel choose."
    )
    allow_anonymous: bool = Field(
        False, description="Listen on a host that others can reach, although there are no keys."
    )
    trusted_proxies: CommaSeparated = Field((), description="Whose X-Forwarded-For is believed.")
    data_dir: Path = Field(default_factory=_default_data_folder, description="Folder of all state.")
    database_url: str = Field(
        "", description="Empty: SQLite in the data folder; or postgresql+psycopg://..."
    )
    database_password_file: Path | None = Field(
        None, description="File with the database's password, where its URL has none."
    )
    inference_url: str = Field(
        "", description="Empty: a socket in the data folder; or unix:///path or http://host:port."
    )
    weights_sources: CommaSeparated = Field(
        (), description="Folders or base URLs tried by file name before the official URL."
    )
    weights_catalog: CommaSeparated = Field((), description="JSON files that add weights.")
    offline: bool = Field(False, description="Never open a connection for weights.")
    egress_allow: CommaSeparated = Field(
        (), description="Networks and hosts that requests may lead to beside public addresses."
    )
    egress_proxy: str = Field(
        "", pattern=r"^(https?://.+)?$", description="Forward proxy of every outgoing request."
    )
    webhook_timeout_seconds: float = Field(
        15.0, gt=0, le=60, description="A webhook's receiver must have answered within."
    )
    webhook_retry_seconds: float = Field(
        5.0, gt=0, le=3600, description="Until a webhook is tried again; then ever longer."
    )
    webhook_retention_seconds: float = Field(
        30 * 86_400.0, ge=60, description="For so long ended deliveries of webhooks are kept."
    )
    device: str = Field("auto", pattern=_DEVICE_PATTERN, description="auto, cpu, cuda or cuda:<n>.")
    executor: Literal["local"] = Field("local", description="Where attempts run.")
    worker_slots: int = Field(
        0, ge=0, le=64, description="Trainings at once; 0: one per GPU, else 1."
    )
    train_threads: int = Field(0, ge=0, le=1024, description="CPU threads of a training; 0: all.")
    serve_threads: int = Field(0, ge=0, le=1024, description="CPU threads of inference; 0: all.")
    cache_bytes: int = Field(
        4 << 30, ge=64 << 20, description="Bound of loaded models in memory, in bytes."
    )
    predict_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Longest wait for a prediction, with a first load."
    )
    max_batch_images: int = Field(
        0, ge=0, le=1024, description="Most images of a forward pass; 0: what is fastest."
    )
    max_queued_images: int = Field(
        512, ge=32, le=65_536, description="Most images accepted and not yet answered."
    )
    shadow_fraction: float = Field(
        0.1, ge=0, le=1, description="Share of a model's predictions that alias `shadow` gets too."
    )
    disk_cache_bytes: int = Field(
        20 << 30, ge=0, description="Bound of decoded pixels and features on disk, in bytes."
    )
    low_water_bytes: int = Field(
        256 << 20,
        ge=0,
        description="With less than so much of the disk free, nothing new is begun; in bytes.",
    )
    ballast_bytes: int = Field(
        64 << 20, ge=0, description="File kept so that SQLite can write on a full disk, in bytes."
    )
    max_upload_bytes: int = Field(
        2 << 30, ge=1024, description="Largest data set archive, in bytes."
    )
    max_image_pixels: int = Field(40_000_000, ge=1024, description="Largest image, in pixels.")
    max_connections: int = Field(
        1000, ge=16, le=65_536, description="Most connections at once; fewer where files are few."
    )
    max_uploads: int = Field(
        128, ge=1, le=65_536, description="Most requests at once whose bodies are still arriving."
    )
    head_seconds: float = Field(
        15.0, gt=0, le=3600, description="In which the head of a request has to be there."
    )
    slow_seconds: float = Field(
        30.0, gt=0, le=3600, description="For so long a client may be slower than the least rate."
    )
    min_bytes_per_second: int = Field(
        1024, ge=1, le=1 << 30, description="Least rate of a body, and of reading an answer."
    )
    idempotency_seconds: float = Field(
        86_400.0, ge=1, description="For so long a request with the same key is made only once."
    )
    gc_interval_seconds: float = Field(
        86_400.0, ge=0, description="Between collections of garbage by the worker; 0: never."
    )
    gc_grace_seconds: float = Field(
        86_400.0, ge=600, description="For so long files that no row points to are kept."
    )
    keep_runs_days: float = Field(
        30.0, ge=0, description="For so long logs, figures and predictions of ended jobs are kept."
    )
    keep_figures_days: float = Field(
        90.0, ge=0, description="For so long figures by step stay in the log of ended jobs."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines for people, or one JSON object each."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is logged."
    )
    traces_url: str = Field(
        "", description="Collector of OpenTelemetry spans, OTLP over HTTP; empty: none."
    )
    lease_seconds: float = Field(
        40.0,
        ge=1,
        le=3600,
        description="After so long without a sign a worker of another host is dead.",
    )
    stall_seconds: float = Field(
        300.0, ge=1, description="An attempt without progress for so long is restarted."
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Of one API key; 0: no bound on loopback, 6000 elsewhere. Keys may have own.",
    )
    max_unfinished_jobs: int = Field(
        0, ge=0, description="Most jobs of a project that have not ended; 0: no bound."
    )
    max_datasets: int = Field(0, ge=0, description="Most data sets of a project; 0: no bound.")
    max_stored_bytes: int = Field(
        0, ge=0, description="Most bytes that a project may have uploaded; 0: no bound."
    )
    max_false_keys_per_minute: int = Field(
        20, ge=1, le=10**6, description="From one address, before the answer is 429 for a while."
    )
    public_metrics: bool = Field(False, description="Answer /metrics without an API key.")
    audit_bytes: int = Field(
        256 << 20, ge=1 << 20, description="Bound of the audit log on disk; the oldest goes."
    )
    faults: str = Field("", description="For tests: named points at which a process is to fail.")

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("egress_allow")
    @classmethod
    def _networks_and_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        EgressPolicy.of(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(entry)) for entry in value)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("traces_url")
    @classmethod
    def _exportable(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("a collector's address begins with http:// or https://")
        if value and find_spec("opentelemetry.exporter") is None:
            raise ValueError("spans need the extra `telemetry`: pip install 'graft[telemetry]'")
        return value

    @field_validator("database_password_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not secret_in(value):
            raise ValueError(f"{value} is empty, or cannot be read by this user")
        return value and value.absolute()

    @model_validator(mode="after")
    def _refuse_password_for_nobody(self) -> Settings:
        if self.database_password_file is not None and "@" not in self.database_url:
            raise ValueError(
                "GRAFT_DATABASE_PASSWORD_FILE needs a GRAFT_DATABASE_URL with a user: "
                "postgresql+psycopg://user@host/name"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the api."""
        return self.host in _LOOPBACK_HOSTS

    @cached_property
    def resolved_database_url(self) -> str:
        """The database, with the default filled in, and without the password in a file."""
        return self.database_url or f"sqlite:///{self.data_dir / 'graft.db'}"

    @cached_property
    def database_address(self) -> str:
        """The database, with its password: for connecting, not for printing."""
        url, path = self.resolved_database_url, self.database_password_file
        return url if path is None else with_password(url, path)

    @cached_property
    def resolved_inference_url(self) -> str:
        """The inference process, with the default filled in."""
        return self.inference_url or f"unix://{self.data_dir / 'run' / 'inference.sock'}"

    @cached_property
    def ballast(self) -> Ballast:
        """The file beside the database that is given up when the disk is full."""
        size_bytes = 0 if self.database_url else self.ballast_bytes
        return Ballast(self.data_dir / "ballast", size_bytes, self.low_water_bytes)

    @cached_property
    def resolved_train_threads(self) -> int:
        """CPU threads of a training child."""
        return self.train_threads or available_cores()

    @cached_property
    def resolved_serve_threads(self) -> int:
        """CPU threads of the inference process."""
        return self.serve_threads or available_cores()

    @cached_property
    def egress(self) -> EgressPolicy:
        """Where outgoing requests may lead."""
        return EgressPolicy.of(self.egress_allow, self.egress_proxy)

    @cached_property
    def connection_limits(self) -> ConnectionLimits:
        """What clients may hold open, files permitting."""
        return ConnectionLimits(
            connections=self.max_connections,
            uploads=self.max_uploads,
            head_seconds=self.head_seconds,
            grace_seconds=self.slow_seconds,
            min_bytes_per_second=self.min_bytes_per_second,
        )

    @cached_property
    def key_limits(self) -> Limits:
        """What an API key without limits of its own may use."""
        per_minute = self.requests_per_minute or (0 if self.is_loopback else _REQUESTS_PER_MINUTE)
        return Limits(
            requests_per_minute=per_minute or None,
            unfinished_jobs=self.max_unfinished_jobs or None,
            datasets=self.max_datasets or None,
            stored_bytes=self.max_stored_bytes or None,
        )

    @cached_property
    def ingest_limits(self) -> IngestLimits:
        """What an upload may hold."""
        return IngestLimits(
            max_upload_bytes=self.max_upload_bytes,
            max_image_pixels=self.max_image_pixels,
            decoders=min(_MOST_DECODERS, available_cores()),
        )

    @cached_property
    def retention(self) -> Retention:
        """How long what is not needed any more is kept."""
        return Retention(
            grace_seconds=self.gc_grace_seconds,
            runs_days=self.keep_runs_days,
            figures_days=self.keep_figures_days,
        )

    def machine(self, code_version: str, gpus: tuple[str, ...]) -> Machine:
        """Return what attempts on this machine, which has these GPUs, share."""
        return Machine(
            data_folder=self.data_dir,
            weights_sources=self.weights_sources,
            weights_catalogues=self.weights_catalog,
            offline=self.offline,
            egress=self.egress,
            device=self.device,
            gpus=gpus,
            train_threads=self.resolved_train_threads,
            ingest_limits=self.ingest_limits.as_json(),
            code_version=code_version,
            faults=self.faults,
            log_format=self.log_format,
            log_level=self.log_level,
            traces_url=self.traces_url,
        )

    def worker_limits(self, gpus: int) -> WorkerLimits:
        """Return the worker's limits on a machine with so many GPUs."""
        return WorkerLimits(
            train_slots=self.worker_slots or max(1, gpus),
            lease_seconds=self.lease_seconds,
            heartbeat_seconds=min(10.0, self.lease_seconds / 4.5),
            stall_seconds=self.stall_seconds,
            disk_cache_bytes=self.disk_cache_bytes,
            idempotency_seconds=self.idempotency_seconds,
            webhook_retention_seconds=self.webhook_retention_seconds,
            low_water_bytes=self.low_water_bytes,
        )


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def visible_devices() -> str | None:
    """Return which GPUs CUDA may use, as whoever started us says; None for all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a process that Graft starts: ours with the settings pinned.

    Pinned, so that a `.env` file or a folder-relative default means the same in every process. GPUs
    are counted as the driver counts them: else CUDA puts the fastest first, and `cuda:1` would be
    another card than the one whose memory is asked for.
    """
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **os.environ,
        "GRAFT_DATA_DIR": str(settings.data_dir),
        "GRAFT_DATABASE_URL": settings.resolved_database_url,
        "GRAFT_DATABASE_PASSWORD_FILE": str(settings.database_password_file or ""),
        "GRAFT_INFERENCE_URL": settings.resolved_inference_url,
        "GRAFT_HOST": settings.host,
        "GRAFT_PORT": str(settings.port),
        "GRAFT_WEIGHTS_CATALOG": ",".join(settings.weights_catalog),
        "GRAFT_WEIGHTS_SOURCES": ",".join(settings.weights_sources),
    }


def embedded_settings(data_folder: Path, port: int, catalogues: tuple[str, ...]) -> Settings:
    """Return settings of a service that lives in one folder; the environment gives the rest."""
    changed = Settings().model_dump() | {
        "data_dir": data_folder,
        "host": "127.0.0.1",
        "port": port,
        "database_url": "",
        "database_password_file": None,
        "inference_url": "",
    }
    if catalogues:
        changed["weights_catalog"] = catalogues
    return Settings.model_validate(changed)
