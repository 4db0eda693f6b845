"""Requests made from the OpenAPI document: no server error, and no status that it does not name.

`GRAFT_TEST_SCHEMA_EXAMPLES` sets how many requests each operation gets (`make soak`: 200).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests import images
from tests.acceptance.running import RunningService, running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that it imports
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import FailureGroup
    from schemathesis.specs.openapi.checks import status_code_conformance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.database,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # schemathesis's own
]

_EXAMPLES = int(os.environ.get("GRAFT_TEST_SCHEMA_EXAMPLES", "3"))
_SETTINGS = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
_UNAVAILABLE = frozenset({503, 507})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with a data set."""
    folder = tmp_path_factory.mktemp("schema")
    with running(folder / "data") as service, service.client() as graft:
        path = images.write_zip(folder / "a.zip", images.class_folders())
        graft.wait_for_dataset(graft.upload(path, name="a")["id"])
        yield service


def test_calls_answer_with_what_is_documented(filled: RunningService) -> None:
    """Every operation of the document, each with requests that fit it and that do not."""
    schema = schemathesis.openapi.from_url(f"{filled.url}/openapi.json")
    everything: list[Any] = list(schema.get_all_operations())
    operations = [found.ok() for found in everything]
    assert len(operations) > 80
    faults = [fault for operation in operations for fault in _faults_of(operation)]
    assert not faults, "\n".join(faults)
    with filled.client() as graft:
        assert graft.is_ready()


def _faults_of(operation: Any) -> list[str]:  # noqa: ANN401 - generic in what we do not use
    faults = []

    def call(case: Any) -> None:  # noqa: ANN401
        answer = case.call(base_url=None, timeout=30)
        if answer.status_code in _UNAVAILABLE:  # planned, and in the document
            return
        try:
            case.validate_response(answer, checks=[not_a_server_error, status_code_conformance])
        except FailureGroup as group:
            faults.append(f"{answer.status_code} {case.as_curl_command()}: {group.exceptions[0]}")

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        with suppress(Unsatisfiable):  # nothing can be wrong with a call that takes nothing
            strategy = operation.as_strategy(generation_mode=mode)
            _SETTINGS(given(strategy)(call))()  # type: ignore[no-untyped-call]  # hypothesis's
    return faults
