"""Keys are used rightly, wrongly, and in every wrong place; then no byte of them is anywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from jobs.keys import PREFIX, sha256_of_key
from jobs.store import tables
from service.client import Graft, GraftProblem
from tests.api_process import Api, running_api, settings_of
from tests.images import zip_bytes

pytestmark = pytest.mark.database
ARCHIVE = zip_bytes({"a/1.jpg": b"1", "b/1.jpg": b"2"})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path / "data", {"GRAFT_LOG_LEVEL": "debug"}) as started:
        yield started


def misuses(client: httpx2.Client, secret: str) -> list[httpx2.Response]:
    """Put a key where none belongs; the client itself sends it where it does."""
    dataset = client.post("/v1/datasets?name=x", content=ARCHIVE).json()["id"]
    job = {"dataset": dataset}
    tuning = {"model": "resnet18"}
    form = {"purpose": "fine-tune"}
    upload = {**form, "bytes": 4, "mime_type": "application/zip"}
    with_key = {"Idempotency-Key": secret}
    return [
        client.get(f"/v1/jobs?key={secret}"),
        client.get(f"/v1/jobs?after={secret}"),
        client.get(f"/v1/jobs/{secret}"),
        client.get(f"/v1/models/{secret.lower()}"),
        client.get(f"/v1/{secret}"),
        client.get(f"/{secret}?{secret}"),
        client.delete(f"/v1/keys/{secret}"),
        client.post(f"/v1/datasets?name={secret}", content=ARCHIVE),
        client.post("/v1/datasets", content=secret.encode()),
        client.post("/v1/datasets", content=ARCHIVE, headers=with_key),
        client.post("/v1/jobs", json={"dataset": secret}),
        client.post("/v1/jobs", json={**job, secret: 1}),
        client.post("/v1/jobs", json={**job, "metadata": {"key": secret}}),
        client.post("/v1/jobs", json={**job, "metadata": {secret: "x"}}),
        client.post("/v1/jobs", content=f'{{"dataset": "graft\\u005f{secret[6:]}"}}'.encode()),
        client.post("/v1/jobs", content=secret.encode()),
        client.post("/v1/jobs", json=job, headers={"Prefer": secret}),
        client.post("/v1/fine_tuning/jobs", json={**tuning, "training_file": secret}),
        client.post("/v1/files", data={"purpose": secret}, files={"file": ("x", ARCHIVE)}),
        client.post("/v1/files", data=form, files={"file": (secret, ARCHIVE)}),
        client.post("/v1/files", data=form, files={secret: ("x", ARCHIVE)}),
        client.post("/v1/uploads", json={**upload, "filename": secret}),
        client.post("/v1/keys", json={"name": secret, "scope": "read"}),
        client.post("/v2/models/absent/infer", json={"id": secret, "inputs": []}),
        client.post("/hf/absent", json={"inputs": secret}),
        client.get("/v1/jobs", headers={"X-Request-Id": secret, "X-Api-Key": secret}),
        client.get("/v1/jobs", headers={"Cookie": f"key={secret}"}),
    ]


def wrong_headers(api: Api, secret: str) -> list[httpx2.Response]:
    wrong = [secret, f"Basic {secret}", f"bearer  {secret}x", f"Bearer {secret} {secret}"]
    wrong += [f"Bearer {secret[:-1]}", f"Bearer Bearer {secret}", f"Token {secret}"]
    with api.client() as client:
        return [client.get("/v1/jobs", headers={"Authorization": value}) for value in wrong]


def command(api: Api, secret: str, *arguments: str) -> str:
    """Return what a command prints, in all."""
    environment = {
        **settings_of(api.data_folder),
        "GRAFT_URL": api.url,
        "GRAFT_API_KEY": secret,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "service.cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def commands(api: Api, secret: str, revoked: str) -> list[str]:
    """Use keys on the command line, rightly and wrongly."""
    return [
        command(api, secret, "jobs", "list"),
        command(api, "", "jobs", "list", "--key", secret),
        command(api, revoked, "jobs", "list"),
        command(api, secret, "jobs", "show", secret),
        command(api, secret, "keys", "revoke", secret),
        command(api, secret, "keys", "list", "--json"),
    ]


def test_no_byte_of_a_key_is_written_anywhere(api: Api) -> None:
    secret, revoked = api.key().secret, api.key()
    with api.client(secret) as client:
        answers = misuses(client, secret)
        assert client.delete(f"/v1/keys/{revoked.key.id}").status_code == 204
        renewed = client.post(f"/v1/keys/{revoked.key.id}/rotate")
        answers += [renewed, client.get("/v1/keys"), client.get("/v1/audit?limit=200")]
    answers += wrong_headers(api, secret)
    assert all(answer.status_code < 500 for answer in answers)
    printed = commands(api, secret, revoked.secret)
    assert [text.split("\n")[0] for text in printed] == ["0", "0", "1", "1", "1", "0"]
    with Graft(api.url, key=revoked.secret) as graft, pytest.raises(GraftProblem) as refused:
        graft.job("job_absent")
    assert refused.value.status == 401
    printed += [repr(refused.value), str(refused.value), repr(vars(refused.value))]

    stored = {path: path.read_bytes() for path in api.data_folder.rglob("*") if path.is_file()} | {
        api.log_path: api.log_path.read_bytes()
    }
    for index, text in enumerate([answer.text for answer in answers] + printed):
        stored[Path(f"told-{index}")] = text.encode()
    for index, answer in enumerate(answers):
        stored[Path(f"headers-{index}")] = str(answer.headers.raw).encode()
    with api.database.read() as connection:
        for table in tables.metadata.sorted_tables:
            rows = connection.execute(select(table)).all()
            stored[Path(f"table-{table.name}")] = repr(rows).encode()
    for key in (secret, revoked.secret):
        middle = key.removeprefix(PREFIX)[8:40].encode()
        for form in (middle, middle.lower(), middle.hex().encode()):
            assert [path for path, data in stored.items() if form in data] == []
        # The scan would have seen it: what is stored of the key is found
        assert any(sha256_of_key(key).encode() in data for data in stored.values())
    log = api.log_path.read_bytes()
    assert b"GET /v1/jobs/graft_*** 401" in log
