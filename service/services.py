"""What a request handler works with, built once by the composition root."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import uuid_utils.compat as uuids
from fastapi import Depends, Header, Path, Query, Request

from jobs.keys import holds_key
from jobs.store.database import Database
from models_cache.blobs import BlobStore
from models_cache.catalogue import Catalogue
from models_cache.disk_space import LowWater
from models_cache.room import Room
from models_cache.weights import WeightsVault
from service.audit import AuditLog
from service.body_length import declared_bytes
from service.engine_wishes import EngineWishes
from service.errors import ValidationFailed
from service.folder_sizes import FolderSizes
from service.indexing import Indexer
from service.inference_client import InferenceClient
from service.key_ring import KeyRing
from service.manifests import RecentManifests
from service.metrics import ServiceMetrics
from service.missing_weights import MissingWeights
from service.rates import Rates
from service.settings import Settings
from service.shadowing import Shadows
from service.version_finder import VersionFinder

IDEMPOTENCY_KEY = "Idempotency-Key"
MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
REFERENCE_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}(@([a-z][a-z0-9._-]{0,62}|[1-9]\d{0,8}))?$"


@dataclass(frozen=True)
class Services:
    """Database, files and neighbours of the api process."""

    settings: Settings
    database: Database
    blobs: BlobStore
    manifests: RecentManifests
    catalogue: Catalogue
    vault: WeightsVault
    inference: InferenceClient
    low_water: LowWater
    predicting: Room
    versions: VersionFinder
    indexer: Indexer
    shadows: Shadows
    folder_sizes: FolderSizes
    engine_wishes: EngineWishes
    missing_weights: MissingWeights
    metrics: ServiceMetrics
    key_ring: KeyRing
    rates: Rates
    false_keys: Rates
    audit: AuditLog


async def _services(request: Request) -> Services:  # not `def`: that is run in a thread
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _require_space(request: Request, services: ServicesDep) -> None:
    """Refuse what would need room before its body is read."""
    # One that says more than is ever taken is refused as too large.
    most_bytes, coming_bytes = services.settings.max_upload_bytes, declared_bytes(request)
    services.low_water.require(coming_bytes if coming_bytes <= most_bytes else 0)


#: Of calls that bring files or begin work.
NEEDS_SPACE = Depends(_require_space)
IdPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_]{1,48}$")]
NamePath = Annotated[str, Path(pattern=MODEL_NAME_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=200, description="Most items of one page.")]
After = Annotated[
    str | None,
    Query(max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="Id of the last item seen."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=IDEMPOTENCY_KEY,
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat a request with the same key and nothing is made twice.",
    ),
]


def new_id(prefix: str) -> str:
    """Return a new id such as `job_0192...`; ids sort by the time they were made."""
    return f"{prefix}_{uuids.uuid7().hex}"


def remove_run_folders(services: Services, job_ids: Iterable[str]) -> None:
    """Remove what jobs that are deleted left on disk: logs, figures, progress."""
    for job_id in job_ids:
        shutil.rmtree(services.settings.data_dir / "runs" / job_id, ignore_errors=True)


def checked_name(name: str, pointer: str) -> str:
    """Return a data set's name in normal form.

    Raises:
        ValidationFailed: It is empty, too long or holds what is not to be shown.
    """
    normal = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(normal) <= 100 or not normal.isprintable() or holds_key(normal):
        raise ValidationFailed.one(pointer, "invalid-name", "1 to 100 printable characters, no key")
    return normal


def model_name_from(name: str) -> str:
    """Return the model name that a data set's name suggests: lower case, others become `-`."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9._-]+", "-", ascii_name).strip("._-")[:63]
    return slug or "model"
