"""Keeps what can be made again within a bound on disk, and forgets rows that have had their time.

What can be made again: pixels, features, engines, indexes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from jobs.store import idempotency, webhooks
from jobs.worker_limits import WorkerLimits
from models_cache.durable import TEMPORARY_SUFFIX
from models_cache.pixels import PixelCache

_PIXELS_FRACTION = 0.75
_LEFTOVER_SECONDS = 3600.0  # nobody takes so long to write a file


def bound_caches(data_folder: Path, limit_bytes: int) -> None:
    """Remove what killed writers left, then the longest unused files until the rest fits."""
    pixels_bytes = int(limit_bytes * _PIXELS_FRACTION)
    PixelCache(data_folder / "cache" / "pixels").evict(pixels_bytes)
    cache = data_folder / "cache"
    for path in cache.glob(f"*/.*{TEMPORARY_SUFFIX}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
    kinds = ("features/*.safetensors", "engines/*.onnx", "neighbours/*.npy")
    rest = [path for kind in kinds for path in cache.glob(kind)]
    _remove_oldest(rest, limit_bytes - pixels_bytes)


def forget_rows(connection: Connection, limits: WorkerLimits) -> None:
    """Forget old idempotency keys and messages of webhooks, in a writing transaction."""
    idempotency.forget(connection, timedelta(seconds=limits.idempotency_seconds))
    webhooks.forget(connection, timedelta(seconds=limits.webhook_retention_seconds))


def _remove_oldest(paths: list[Path], limit_bytes: int) -> None:
    files = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in paths)
    excess_bytes = sum(size_bytes for _, size_bytes, _ in files) - limit_bytes
    for _, size_bytes, path in files:
        if excess_bytes <= 0:
            return
        path.unlink(missing_ok=True)  # a reader has it in memory, or open
        excess_bytes -= size_bytes
