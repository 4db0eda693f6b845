"""Who is let in: each operation with each kind of key, rotation, expiry, limits, the audit log."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest

from jobs.issuing import renew
from jobs.keys import Limits, Scope, new_key
from jobs.store import keys
from jobs.store.database import utc_now
from service.access import NEEDS, need_of
from service.callers import Caller
from service.key_ring import REMEMBERED_SECONDS, KeyRing
from tests.api_process import Api, clean_environment, running_api, settings_of
from tests.images import zip_bytes
from tests.tenants import ABSENT
from tests.waiting import until

PUBLIC = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
OF_ADMINS = {"/v1/keys", "/v1/keys/{key_id}", "/v1/keys/{key_id}/rotate", "/v1/audit"}
ASKS = {  # they change nothing
    "/v1/models/{reference}/predict",
    "/v1/models/{reference}/embed",
    "/v1/models/{reference}/similar",
    "/v2/models/{reference}/infer",
    "/v2/models/{name}/versions/{number}/infer",
    "/hf/{reference}",
}
ARCHIVE = zip_bytes({"a/1.jpg": b"1", "b/1.jpg": b"2"})
pytestmark = pytest.mark.database
MANY = {"GRAFT_MAX_FALSE_KEYS_PER_MINUTE": "100000"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("access") / "data", MANY) as started:
        started.key()  # from now on everybody needs one
        yield started


@pytest.fixture(scope="module")
def operations(api: Api) -> list[tuple[str, str]]:
    with api.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, calls in paths.items() for method in calls]


@pytest.fixture(scope="module")
def presented(api: Api) -> dict[str, str | None]:
    """Return what is sent as `Authorization`, by what it is."""
    good, old = api.key().secret, api.key(lifetime=timedelta(seconds=-1)).secret
    revoked = api.key()
    with api.database.write() as connection:
        keys.revoke(connection, revoked.key.id, "default")
    return {
        "none": None,
        "empty": "",
        "basic": "Basic Z3JhZnQ6Z3JhZnQ=",
        "no-scheme": good,
        "typo": f"Bearer {good[:-1]}{'a' if good[-1] != 'a' else 'b'}",
        "unknown": f"Bearer {new_key()}",
        "expired": f"Bearer {old}",
        "revoked": f"Bearer {revoked.secret}",
        **{scope.value: f"Bearer {api.key(scope=scope).secret}" for scope in Scope},
        "admin-of-another": f"Bearer {api.key('others').secret}",
    }


def absent(path: str) -> str:
    """Return an address of what is not there."""
    values = {
        "dataset_id": ABSENT.dataset,
        "job_id": ABSENT.job,
        "name": "absent",
        "reference": "absent",
        "architecture": "absent",
        "alias": "absent",
        "file": "absent",
    }
    return re.sub(r"{(\w+)}", lambda match: values.get(match[1], "7"), path)


def expected(need: str, kind: str) -> int | None:
    """Return the status of a refusal; None if the request is let in."""
    if need == "nothing":
        return None
    if kind == "admin-of-another":
        return 403 if need == "operator" else None
    if kind not in list(Scope):
        return 401
    return None if need == "operator" or Scope(kind).covers(Scope(need)) else 403


def test_each_operation_lets_in_whom_it_should(
    api: Api, operations: list[tuple[str, str]], presented: dict[str, str | None]
) -> None:
    assert set(NEEDS) - set(operations) == {
        ("GET", "/docs"), ("GET", "/docs/oauth2-redirect"), ("GET", "/redoc")
    }  # fmt: skip
    needs = {operation: need_of(*operation) for operation in operations}
    assert {path for (_, path), need in needs.items() if need == "nothing"} == PUBLIC
    assert {path for (_, path), need in needs.items() if need == Scope.ADMIN} == OF_ADMINS
    assert {path for (m, path), need in needs.items() if need == Scope.READ and m != "GET"} == ASKS
    with api.client(kept_connections=1) as client:
        for method, path in operations:
            need = need_of(method, path)
            for kind, header in presented.items():
                headers = {} if header is None else {"Authorization": header}
                answer = client.request(method, absent(path), headers=headers)
                refused = answer.status_code if answer.status_code in (401, 403) else None
                assert refused == expected(need, kind), (method, path, kind, answer.text)
                if refused:
                    assert_refusal(answer, path, kind)


def assert_refusal(answer: httpx2.Response, path: str, kind: str) -> None:
    """A refusal has the header of RFC 6750 and the form of its protocol."""
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="graft"')
    wanted = {401: "invalid_token", 403: "insufficient_scope"}[answer.status_code]
    assert (wanted in challenge) == (kind != "none")
    code = {401: "unauthenticated", 403: "forbidden"}[answer.status_code]
    body = answer.json()
    if path.startswith(("/v2", "/hf")):
        assert list(body) == ["error"]
        assert isinstance(body["error"], str)
    elif path.startswith(("/v1/files", "/v1/uploads", "/v1/fine_tuning")):
        assert body["error"]["code"] == code
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert (body["code"], body["type"]) == (code, f"/problems/{code}")
    if kind in ("unknown", "expired", "revoked"):
        assert "unknown, expired or revoked" in answer.text
    if kind in ("typo", "no-scheme"):
        assert "typo" in answer.text


def test_only_one_header_and_never_the_address(api: Api) -> None:
    secret = api.key().secret
    with api.client() as client:
        pair = ("Authorization", f"Bearer {secret}")
        assert client.get("/v1/jobs", headers=[pair]).status_code == 200
        assert client.get("/v1/jobs", headers=[pair, pair]).status_code == 401
        for query in (f"?key={secret}", f"?api_key={secret[:50]}", f"?after={secret}"):
            answer = client.get(f"/v1/jobs{query}", headers=[pair])
            assert answer.status_code == 401
            assert "address" in answer.json()["detail"]
            assert secret not in answer.text


def test_pages_and_health_need_no_key_and_nothing_else_is_open(api: Api) -> None:
    with api.client() as client:
        for path in ("/docs", "/redoc", "/openapi.json", "/healthz"):
            assert client.get(path).status_code == 200, path
        assert client.get("/v1/nothing").status_code == 404
        for path in ("/v1/jobs", "/v1/keys", "/metrics", "/v2"):
            assert client.head(path).status_code == 401, path
        document = client.get("/openapi.json").json()
    assert document["paths"]["/v1/keys"]["post"]["x-graft-needs"] == "admin"
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_every_answer_tells_browsers_what_it_is_not(api: Api) -> None:
    origin = {"Origin": "https://evil.example"}
    with api.client(api.key().secret) as client, api.client() as stranger:
        answers = {
            "data": client.get("/v1/datasets", headers=origin),
            "refused": stranger.get("/v1/datasets", headers=origin),
            "absent": client.get("/v1/nothing", headers=origin),
            "preflight": client.options("/v1/datasets", headers=origin),
            "foreign": client.post("/v1/datasets", content=ARCHIVE, headers=origin),
            "page": client.get("/docs", headers=origin),
            "script": client.get("/static-offline-docs/swagger-ui-bundle.js", headers=origin),
        }
    assert answers["foreign"].status_code == 403
    for what, answer in answers.items():
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff", what
        assert headers["x-frame-options"] == "DENY", what
        assert headers["referrer-policy"] == "no-referrer", what
        assert "frame-ancestors 'none'" in headers["content-security-policy"], what
        assert not [name for name in headers if name.startswith("access-control")], what
        kept = what in ("page", "script")
        assert (headers.get("cache-control") == "no-store") != kept, what
    assert "script-src" not in answers["data"].headers["content-security-policy"]


def test_keys_are_made_shown_once_rotated_and_revoked_over_http(api: Api) -> None:
    with api.client(api.key("pets").secret) as admin:
        asked = {"name": "ci", "scope": "read", "expires_in_seconds": 60}
        made = admin.post("/v1/keys", json={**asked, "limits": {"datasets": 3}})
        assert made.status_code == 201
        body = made.json()
        assert (body["project"], body["limits"]) == ("pets", {"datasets": 3})
        assert made.headers["cache-control"] == "no-store"
        first = body["key"]
        listed = admin.get("/v1/keys").json()["data"]
        assert "key" not in listed[0]
        assert first not in admin.get("/v1/keys").text
        assert status(api, first) == 200
        rotated = admin.post(f"/v1/keys/{body['id']}/rotate", json={"grace_seconds": 3600})
        second = rotated.json()["key"]
        assert rotated.json()["id"] == body["id"]
        assert [status(api, secret) for secret in (first, second)] == [200, 200]
        third = admin.post(f"/v1/keys/{body['id']}/rotate", json={"grace_seconds": 0}).json()["key"]
        assert [status(api, secret) for secret in (first, second, third)] == [401, 401, 200]
        assert admin.delete(f"/v1/keys/{body['id']}").status_code == 204
        assert status(api, third) == 401
        assert admin.delete(f"/v1/keys/{body['id']}").status_code == 204
        again = admin.post(f"/v1/keys/{body['id']}/rotate")
        assert (again.status_code, again.json()["code"]) == (409, "key-ended")


def status(api: Api, secret: str, path: str = "/v1/datasets") -> int:
    with api.client(secret) as client:
        return client.get(path).status_code


def is_refused(api: Api, secret: str) -> bool:
    return status(api, secret) == 401


def test_what_another_process_revokes_is_refused_within_seconds(api: Api) -> None:
    revoked, expiring = api.key(), api.key(lifetime=timedelta(seconds=1.5))
    rotated = api.key()
    for issued in (revoked, expiring, rotated):
        assert status(api, issued.secret) == 200
    with api.database.write() as connection:
        keys.revoke(connection, revoked.key.id, "default")
        renew(connection, rotated.key.id, "default", timedelta(0))
    for issued in (revoked, expiring, rotated):
        until(partial(is_refused, api, issued.secret), REMEMBERED_SECONDS + 5)


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(api: Api) -> None:
    issued = api.key(lifetime=timedelta(hours=1))
    asked: list[datetime] = []

    def revoking_behind_the_look() -> datetime:
        asked.append(utc_now())
        if len(asked) == 2:  # once to look, once more to see for how long it is good
            with api.database.write() as connection:
                keys.revoke(connection, issued.key.id, "default")
            ring.forget()
        return asked[-1]

    ring = KeyRing(api.database, Limits(), revoking_behind_the_look)

    async def twice() -> list[Caller | None]:
        found = [await ring.with_key(issued.secret) for _ in range(2)]
        await ring.close()
        return found

    before, after = asyncio.run(twice())
    assert before is not None
    assert after is None


def test_last_use_is_written(api: Api) -> None:
    issued = api.key()
    assert status(api, issued.secret) == 200

    def used() -> bool:
        with api.database.read() as connection:
            return keys.get(connection, issued.key.id, "default").last_used_at is not None

    until(used)


def test_changes_and_refusals_are_in_the_audit_log_with_who_and_what(api: Api) -> None:
    admin, reader = api.key("logged"), api.key("logged", Scope.READ)
    with api.client(admin.secret) as client, api.client(reader.secret) as small:
        made = client.post("/v1/datasets?name=x", content=ARCHIVE).json()["id"]
        assert client.get("/v1/datasets").status_code == 200  # a look is not noted
        assert small.delete(f"/v1/datasets/{made}").status_code == 403
        assert client.delete("/v1/jobs/job_absent").status_code == 404
        page = client.get("/v1/audit", params={"limit": 2}).json()
        newest = client.get("/v1/audit", params={"limit": 1}).json()["data"][0]
        assert newest["call"] == "GET /v1/audit"  # who looked is noted, too
        rest = client.get("/v1/audit", params={"after": page["next"]}).json()
        beyond = client.get("/v1/audit", params={"after": "aud_1_1"})
    entries = page["data"] + rest["data"]
    told = [(e["call"], e["status"], e["outcome"], e["key"], e["made"]) for e in entries]
    assert told == [
        ("DELETE /v1/jobs/{job_id}", 404, "failed", admin.key.id, None),
        ("DELETE /v1/datasets/{dataset_id}", 403, "refused", reader.key.id, None),
        ("POST /v1/datasets", 202, "done", admin.key.id, f"/v1/datasets/{made}"),
    ]
    assert {e["project"] for e in entries} == {"logged"}
    assert all(e["address"] == "127.0.0.1" and e["request_id"] for e in entries)
    assert f"/v1/datasets/{made}" in {e["path"] for e in entries}
    assert (beyond.status_code, beyond.json()["code"]) == (404, "audit-entry-not-found")


def test_only_a_trusted_proxy_says_who_called(api: Api, tmp_path: Path) -> None:
    assert noted_address(api) == "127.0.0.1"
    with running_api(tmp_path / "data", {"GRAFT_TRUSTED_PROXIES": "127.0.0.0/8, ::1"}) as behind:
        assert noted_address(behind) == "203.0.113.7"


def noted_address(api: Api) -> str:
    secret = api.key().secret
    until(lambda: status(api, new_key()) == 401, REMEMBERED_SECONDS + 5)
    said = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
    with api.client() as stranger, api.client(secret) as operator:
        assert stranger.delete("/v1/jobs/job_passed_on", headers=said).status_code == 401
        entries = operator.get("/v1/audit").json()["data"]
    found = next(entry for entry in entries if entry["path"] == "/v1/jobs/job_passed_on")
    return str(found["address"])


def test_without_keys_everybody_on_the_machine_may_do_all_but_make_the_first(
    tmp_path: Path,
) -> None:
    with running_api(tmp_path / "data", {"GRAFT_MAX_FALSE_KEYS_PER_MINUTE": "3"}) as api:
        with api.client() as client, api.client("anything") as odd:
            assert client.post("/v1/datasets", content=ARCHIVE).status_code == 202
            assert odd.get("/v1/datasets").json()["data"][0]["name"] == "dataset"
            assert client.get("/metrics").status_code == 200
            first = client.post("/v1/keys", json={"name": "x", "scope": "admin"})
            assert (first.status_code, first.json()["code"]) == (403, "first-key-missing")
            secret = made_on_the_machine(api)
            assert status(api, secret) == 200
            until(lambda: client.get("/v1/datasets").status_code == 401, REMEMBERED_SECONDS + 5)
        with api.client() as stranger, api.client(secret) as operator:
            assert stranger.delete("/v1/jobs/job_knock").status_code == 401
            entries = operator.get("/v1/audit").json()["data"]
        knock = next(entry for entry in entries if entry["path"] == "/v1/jobs/job_knock")
        assert (knock["key"], knock["project"], knock["outcome"]) == (None, None, "refused")
        with api.client(new_key()) as guessing:
            answers = [guessing.get("/v1/datasets").status_code for _ in range(4)]
            assert answers == [401, 401, 401, 429]
        assert status(api, secret) == 200  # nobody can lock out who has a good one


def made_on_the_machine(api: Api) -> str:
    command = [sys.executable, "-P", "-m", "service.cli.main", "keys", "create"]
    done = subprocess.run(
        [*command, "--scope", "admin"],
        env=settings_of(api.data_folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() not in done.stderr
    return done.stdout.strip()


def test_a_service_that_others_can_reach_does_not_start_without_keys(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "service.cli.main", "api"]
    reachable = {"GRAFT_DATA_DIR": str(tmp_path), "GRAFT_HOST": "0.0.0.0"}  # noqa: S104
    environment = {**clean_environment(), **reachable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "graft keys create --scope admin" in done.stderr
