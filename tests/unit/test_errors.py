"""Every error class of the project keeps the rules of the tree."""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import pkgutil
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import jobs
import models_cache
import service
from models_cache.errors import GraftError, from_wire, subclasses, to_wire
from service.problems import STATUS, status_of

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_SAMPLES = {
    "str": "text",
    "int": 3,
    "bool": True,
    "float": 0.5,
    "list[dict[str, str]]": [{"pointer": "/x"}],
}
#: What goes wrong in us or in the data folder, not in a request.
_OURS = {"wire-malformed", "internal-error", "storage-error", "blob-missing", "blob-corrupt"}


def _import_everything() -> None:
    for package in (service, jobs, models_cache):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)


_import_everything()
ALL = sorted(set(subclasses()), key=lambda cls: cls.__qualname__)
LEAVES = [cls for cls in ALL if "__dataclass_fields__" in vars(cls)]


def _sample(cls: type[GraftError]) -> GraftError:
    hints = get_type_hints(cls)
    values = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # leaves are dataclasses
        name = str(hints[field.name]).replace("<class '", "").replace("'>", "")
        values.append(_SAMPLES.get(name, ["text"]))
    return cls(*values)


def test_codes_are_unique_and_kebab_case() -> None:
    codes = [cls.code for cls in LEAVES]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_leaf_survives_pickle_and_wire_and_prints_a_sentence(cls: type[GraftError]) -> None:
    error = _sample(cls)
    assert str(error)
    assert "{" not in str(error).replace("{'pointer'", "")
    for again in (pickle.loads(pickle.dumps(error)), from_wire(to_wire(error))):  # noqa: S301
        assert type(again) is cls
        assert again.facts == error.facts


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_leaf_has_a_status_of_its_own_family(cls: type[GraftError]) -> None:
    status = status_of(cls)
    assert status in _STATUSES or cls.code in _OURS | _JOB_INTERNAL


_STATUSES = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504, 507)
#: Said in a job's `error`, never as an answer of its own.
_JOB_INTERNAL = {"lease-lost", "attempts-exhausted", "attempt-died", "stalled", "job-error"}


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_code_has_a_heading_in_the_docs(cls: type[GraftError]) -> None:
    assert f"`{cls.code}`" in _DOCS.read_text()


def test_every_mapped_class_is_real() -> None:
    assert set(STATUS) <= set(ALL)
