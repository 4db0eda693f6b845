"""Checks of the pretrained weights: known, whole, and to be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models_cache.catalogue import Catalogue
from models_cache.egress import Outgoing, exchange
from models_cache.egress_errors import EgressError
from models_cache.errors import GraftError
from models_cache.weights import OFFICIAL_URL_PREFIX, WeightsVault
from models_cache.weights_bundle import verify_weights
from service.checkup.finding import Finding, fine, problem, warning
from service.settings import Settings

_ASK_SECONDS = 5.0


def check_weights(settings: Settings) -> Iterator[Finding]:
    """Read the catalogue, hash what is on disk, ask the sources."""
    extra = [Path(path) for path in settings.weights_catalog]
    try:
        catalogue = Catalogue.load(extra_files=extra)
    except (GraftError, OSError) as error:
        yield problem("weights-catalogue", str(error), "mend GRAFT_WEIGHTS_CATALOG")
        return
    yield fine("weights-catalogue", f"{len(catalogue.architectures())} backbones")
    vault = WeightsVault(
        settings.data_dir / "weights", settings.weights_sources, offline=settings.offline
    )
    results = verify_weights(vault, catalogue)
    broken = [info.file for info, whole in results if not whole]
    if broken:
        yield problem(
            "weights",
            f"{len(broken)} of {len(results)} files are not what they should be: {broken[0]}",
            "delete them in the folder weights and run `graft weights download`",
        )
    else:
        yield fine("weights", f"{len(results)} files on disk, every hash right")
    yield from _sources(settings, has_some=bool(results or extra))


def _sources(settings: Settings, *, has_some: bool) -> Iterator[Finding]:
    for source in settings.weights_sources:
        if not source.startswith(("http://", "https://")):
            yield _folder(source)
        elif not settings.offline:
            yield _address(settings, source)
    if settings.offline:
        if has_some or settings.weights_sources:
            yield fine("weights-sources", "offline: no connection is opened")
        else:
            yield problem(
                "weights-sources",
                "offline, and there are neither weights nor folders that have some",
                "`graft weights import`, or set GRAFT_WEIGHTS_SOURCES to a folder",
            )
    elif not settings.weights_sources:
        yield _address(settings, OFFICIAL_URL_PREFIX)


def _folder(source: str) -> Finding:
    if Path(source).expanduser().is_dir():
        return fine("weights-sources", source)
    return problem("weights-sources", f"{source} is no folder", "mend GRAFT_WEIGHTS_SOURCES")


def _address(settings: Settings, url: str) -> Finding:
    try:
        with exchange(
            settings.egress, Outgoing(url=url, total_seconds=_ASK_SECONDS, method="HEAD")
        ) as answer:
            return fine("weights-sources", f"{answer.url} answers")
    except EgressError as error:
        advice = "set GRAFT_OFFLINE=1 and carry weights over with `graft weights import`"
        return warning("weights-sources", str(error), f"connect, or {advice}")
