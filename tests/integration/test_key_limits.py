"""How much a key may use: rates, quotas of its project, and keys that are made with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.backup.unfinished import mark_path
from jobs.keys import Limits
from jobs.store import tables
from tests.api_process import Api, clean_environment, running_api
from tests.images import zip_bytes
from tests.tenants import Things, furnish

ARCHIVE = zip_bytes({"a/1.jpg": b"1", "b/1.jpg": b"2"})
pytestmark = pytest.mark.database


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("limits") / "data") as started:
        started.key()  # from now on everybody needs one
        yield started


def test_a_key_has_so_many_requests_a_minute(api: Api) -> None:
    limited = api.key(limits=Limits(requests_per_minute=6)).secret
    with api.client(limited) as client:
        answers = [client.get("/v1/jobs") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429]
        assert answers[-1].json()["code"] == "rate-limited"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        assert client.get("/v2").json()["error"].startswith("more than 6 requests")
    with api.client(api.key().secret) as another:
        assert another.get("/v1/jobs").status_code == 200


def test_a_project_has_so_many_data_sets_jobs_and_bytes(api: Api) -> None:
    with api.database.write() as connection:
        things = furnish(connection, api.data_folder, "small", "small")  # an export is queued
    used = api.database
    with used.read() as connection:
        from_before = stored_bytes(connection, things)
    bounds = {
        "unfinished jobs": Limits(unfinished_jobs=1),
        "data sets": Limits(datasets=1),
        "bytes": Limits(stored_bytes=from_before + len(ARCHIVE) - 1),
    }
    clients = {
        what: api.client(api.key("small", limits=limits).secret) for what, limits in bounds.items()
    }
    calls = {
        "unfinished jobs": ("/v1/jobs", {"json": {"dataset": things.dataset}}),
        "data sets": ("/v1/datasets", {"content": ARCHIVE}),
        "bytes": ("/v1/datasets", {"content": ARCHIVE}),
    }
    for what, client in clients.items():
        with client:
            path, body = calls[what]
            answer = client.post(path, **body)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["code"]) == (429, "quota-exceeded"), what
            assert what in answer.json()["detail"]
            assert answer.headers["retry-after"] == "60"
    with api.client(api.key("small", limits=bounds["data sets"]).secret) as client:
        path = f"/v1/datasets/{things.dataset}/versions"
        assert client.post(path, content=ARCHIVE).status_code == 429
        begun = client.post("/v1/uploads", json=UPLOAD)
        assert (begun.status_code, begun.json()["error"]["code"]) == (429, "quota-exceeded")
        retried = client.post(f"/v1/jobs/{things.job}/retry")
        assert retried.status_code == 202  # bounded by data sets, not by jobs
    with api.client(api.key("small").secret) as client:
        assert client.post("/v1/datasets", content=ARCHIVE).status_code == 202


def test_what_uploads_in_parts_announce_counts_until_they_end(api: Api) -> None:
    limits = Limits(stored_bytes=3 * UPLOAD["bytes"] - 1)
    with (
        api.client(api.key("parts", limits=limits).secret) as client,
        api.client(api.key("others").secret) as others,
    ):
        assert others.post("/v1/uploads", json=UPLOAD).status_code == 200
        first, _ = (client.post("/v1/uploads", json=UPLOAD).json() for _ in range(2))
        third = client.post("/v1/uploads", json=UPLOAD)
        assert (third.status_code, third.json()["error"]["code"]) == (429, "quota-exceeded")
        assert client.post(f"/v1/uploads/{first['id']}/cancel").status_code == 200
        assert client.post("/v1/uploads", json=UPLOAD).status_code == 200


UPLOAD: dict[str, Any] = {
    "purpose": "fine-tune",
    "filename": "a.zip",
    "bytes": 4,
    "mime_type": "application/zip",
}


def stored_bytes(connection: Any, things: Things) -> int:  # noqa: ANN401 - a connection
    table, feedback = tables.datasets.c, tables.feedback.c
    of_dataset = connection.execute(
        tables.datasets.select().where(table.id == things.dataset)
    ).one()
    of_feedback = connection.execute(
        tables.feedback.select().where(feedback.id == things.feedback)
    ).one()
    return int(of_dataset.archive_bytes + of_feedback.image_bytes)


def test_a_key_of_a_tenant_makes_none_that_may_use_more(api: Api) -> None:
    bound = {"stored_bytes": 1000, "datasets": 2}
    with api.client(api.key("bounded", limits=Limits(**bound)).secret) as tenant:
        silent = tenant.post("/v1/keys", json={"name": "x", "scope": "admin"})
        assert silent.json()["limits"] == bound
        less = {"name": "x", "scope": "read", "limits": {"datasets": 1}}
        assert tenant.post("/v1/keys", json=less).json()["limits"] == {**bound, "datasets": 1}
        more = {"name": "x", "scope": "read", "limits": {"stored_bytes": 1001}}
        refused = tenant.post("/v1/keys", json=more)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "beyond-own")
    with api.client(api.key(limits=Limits(**bound)).secret) as operator:
        assert operator.post("/v1/keys", json=more).status_code == 201


def test_no_key_is_made_within_an_unfinished_restore(tmp_path: Path) -> None:
    """The restore would take its row for all of the backup's."""
    mark_path(tmp_path).write_text('"x"')
    done = subprocess.run(
        [sys.executable, "-P", "-m", "service.cli.main", "keys", "create"],
        env={**clean_environment(), "GRAFT_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "was not finished" in done.stderr
    assert not (tmp_path / "graft.db").exists()
