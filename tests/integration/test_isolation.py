"""Another project's ids are answered as absent ones, in every operation that the service has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from jobs.store import tables
from tests.api_process import Api, running_api
from tests.faults.soak import write_figure
from tests.images import zip_bytes
from tests.tenants import ABSENT, Things, furnish

pytestmark = pytest.mark.database

Operation = tuple[str, str]
ARCHIVE = zip_bytes({"a/1.jpg": b"1", "b/1.jpg": b"2"})
#: Parameters of paths that name something of a project, and what of it.
IDS = {
    "dataset_id": "dataset",
    "job_id": "job",
    "export_id": "export",
    "upload_id": "upload",
    "feedback_id": "feedback",
    "image_id": "image",
    "key_id": "key",
    "delivery_id": "delivery",
    "name": "model",
    "reference": "model",
}
#: The others, with a value that every project has.
VALUES = {
    "version": "1",
    "number": "1",
    "alias": "stable",
    "file": "README.md",
    "architecture": "resnet18",
}
#: Where `name` is no model's.
NAMES_OF_OTHERS = {
    "/v1/jobs/{job_id}/files/{name}": "metrics.jsonl",
    "/v1/recipes/{name}/schema": "head",
}
BODIES: dict[Operation, Any] = {
    ("PUT", "/v1/models/{name}/aliases/{alias}"): {"version": 1},
    ("POST", "/v1/models/{name}/versions/{version}/exports"): {"format": "onnx"},
    ("POST", "/v1/uploads/{upload_id}/complete"): {"part_ids": ["part_" + "0" * 64]},
}
#: A name that is not there is made: another project's is no different from an absent one.
MAKES_THE_NAME = {("POST", "/v1/models/{name}/versions")}
#: Nothing in them names a thing of a project.
WITHOUT_IDS = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/backbones"),
    ("GET", "/v1/backbones/{architecture}"),
    ("POST", "/v1/backbones/{architecture}/download"),
    ("GET", "/v1/recipes"),
    ("GET", "/v1/recipes/{name}/schema"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("POST", "/v1/datasets"),
    ("POST", "/v1/files"),
    ("POST", "/v1/uploads"),
    ("POST", "/v1/keys"),
}


@dataclass(frozen=True)
class Probe:
    """A request with an id in it; `path` and `body` are templates over `Things`."""

    operation: Operation
    path: str
    varied: str  # which of `Things` is another's, or absent
    body: Any = None
    content: bytes | None = None
    accept: str = "*/*"
    own_differs: bool = True

    def send(self, client: httpx2.Client, own: Things, given: str) -> httpx2.Response:
        things = vars(replace(own, **{self.varied: given}))
        headers = {"accept": self.accept}
        options: dict[str, Any] = {}
        if self.body is not None:
            options["json"] = json.loads(_filled(json.dumps(self.body), things))
        elif self.content is not None:
            options["content"] = self.content
            headers["content-type"] = "image/jpeg"
        path = _filled(self.path, things)
        return client.request(self.operation[0], path, headers=headers, **options)


def _filled(template: str, things: dict[str, str]) -> str:
    return re.sub(r"<(\w+)>", lambda match: things[match[1]], template)


def in_path(operation: Operation) -> list[Probe]:
    """Return a probe for each id in the path of an operation."""
    method, path = operation
    filled, varied = path, []
    for name in re.findall(r"{(\w+)}", path):
        if name == "name" and path in NAMES_OF_OTHERS:
            value = NAMES_OF_OTHERS[path]
        elif name in IDS:
            value = f"<{IDS[name]}>"
            varied.append(IDS[name])
        else:
            value = VALUES[name]  # fails for a parameter that nobody thought of
        filled = filled.replace(f"{{{name}}}", value)
    body = BODIES.get(operation)
    content = b"no image" if method == "POST" and body is None else None
    if path.endswith(("/retry", "/rotate", "/apply", "/cancel", "/pause", "/resume", "/redeliver")):
        content = None
    differs = operation not in MAKES_THE_NAME
    return [Probe(operation, filled, thing, body, content, own_differs=differs) for thing in varied]


def after(path: str, thing: str, *, own_differs: bool = True) -> Probe:
    """Return a probe of a list whose cursor is another's."""
    template = re.sub(r"{(\w+)}", lambda match: f"<{IDS[match[1]]}>", path)
    return Probe(("GET", path), f"{template}?after=<{thing}>", thing, own_differs=own_differs)


ELSEWHERE = [
    after("/v1/datasets", "dataset"),
    after("/v1/datasets/{dataset_id}/images", "image"),
    after("/v1/jobs", "job"),
    after("/v1/models", "model", own_differs=False),  # a name is a place, whoever has it
    after("/v1/models/{name}/feedback", "feedback"),
    after("/v1/files", "dataset"),
    after("/v1/fine_tuning/jobs", "job"),
    after("/v1/keys", "key"),
    after("/v1/audit", "audit"),
    Probe(("POST", "/v1/jobs"), "/v1/jobs", "dataset", {"dataset": "<dataset>"}),
    Probe(
        ("POST", "/v1/jobs"),
        "/v1/jobs",
        "model",
        {"type": "batch_predict", "dataset": "<dataset>", "model": "<model>"},
    ),
    Probe(
        ("POST", "/v1/jobs"),
        "/v1/jobs",
        "model",
        {"type": "evaluate", "dataset": "<dataset>", "model": "<model>"},
    ),
    Probe(
        ("POST", "/v1/fine_tuning/jobs"),
        "/v1/fine_tuning/jobs",
        "dataset",
        {"training_file": "<dataset>", "model": "squeezenet1_1"},
    ),
    Probe(
        ("POST", "/v1/models/{reference}/similar"),
        "/v1/models/<model>/similar?dataset=<dataset>",
        "dataset",
        content=b"no image",
    ),
    Probe(
        ("POST", "/v1/uploads/{upload_id}/complete"),
        "/v1/uploads/<upload>/complete",
        "part",
        {"part_ids": ["<part>"]},
    ),
    Probe(
        ("GET", "/v1/jobs/{job_id}/events"),
        "/v1/jobs/<job>/events",
        "job",
        accept="text/event-stream",
    ),
    Probe(
        ("GET", "/v1/fine_tuning/jobs/{job_id}/events"),
        "/v1/fine_tuning/jobs/<job>/events?after=<job>.1",
        "job",
    ),
]


@dataclass(frozen=True)
class Tenants:
    """Two projects of one service, each with its administrator."""

    api: Api
    ants: Things
    bees_client: httpx2.Client
    ants_client: httpx2.Client

    def bees(self) -> Things:
        """Give the second project another one of everything."""
        self.counter.append(0)
        with self.api.database.write() as connection:
            name = f"bees-{len(self.counter)}"
            things = furnish(connection, self.api.data_folder, "bees", name)
        return audited(self.bees_client, things)

    counter: list[int]


def audited(client: httpx2.Client, things: Things) -> Things:
    """Give a project an entry in the audit log."""
    assert client.delete(f"/v1/datasets/{ABSENT.dataset}").status_code == 404
    return replace(things, audit=client.get("/v1/audit?limit=1").json()["data"][0]["id"])


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    with running_api(tmp_path_factory.mktemp("tenants") / "data") as api:
        with api.database.write() as connection:
            ants = furnish(connection, api.data_folder, "ants", "ants")
        with (
            api.client(api.key("bees").secret) as bees_client,
            api.client(api.key("ants").secret) as ants_client,
        ):
            yield Tenants(api, audited(ants_client, ants), bees_client, ants_client, [])


def operations(client: httpx2.Client) -> list[Operation]:
    document = client.get("/openapi.json").json()
    return [(m.upper(), path) for path, calls in document["paths"].items() for m in calls]


def told(answer: httpx2.Response, given: str) -> tuple[Any, ...]:
    """Return what an answer says, apart from the id that was asked for and its own."""
    text = answer.text.replace(given, "<id>")
    text = re.sub(r'"request_id":"\w+"', "", text)
    kept = {"content-type", "www-authenticate", "allow", "cache-control", "retry-after"}
    headers = sorted((name, value) for name, value in answer.headers.items() if name in kept)
    return answer.status_code, text, headers


def test_foreign_ids_are_as_absent_ones_in_every_operation(tenants: Tenants) -> None:
    client = tenants.bees_client
    found = operations(client)
    probes = [probe for operation in found for probe in in_path(operation)] + ELSEWHERE
    assert {probe.operation for probe in probes} | WITHOUT_IDS == set(found)
    assert not {probe.operation for probe in probes} & WITHOUT_IDS
    before = rows_of(tenants, "ants")
    own = tenants.bees()
    for probe in probes:
        foreign, absent = vars(tenants.ants)[probe.varied], vars(ABSENT)[probe.varied]
        answer = probe.send(client, own, foreign)
        nothing = probe.send(client, own, absent)
        assert told(answer, foreign) == told(nothing, absent), probe
        assert answer.status_code < 500, probe
        if probe.own_differs:
            fresh = own if probe.operation[0] == "GET" else tenants.bees()
            known = probe.send(client, fresh, vars(fresh)[probe.varied])
            same = vars(fresh)[probe.varied]
            assert told(known, same)[:2] != told(nothing, absent)[:2], (probe, known.text)
    assert rows_of(tenants, "ants") == before
    told_of = f"{len(found)} of {len(found)} operations, {len(probes)} probes, 0 leaks"
    write_figure("foreign-id-matrix", told_of, "all operations, 0 leaks", ok=True)


def rows_of(tenants: Tenants, project: str) -> dict[str, list[Any]]:
    """Return every row of a project."""
    of_projects = [t for t in tables.metadata.sorted_tables if "project" in t.c]
    with tenants.api.database.read() as connection:
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(select(table).where(table.c.project == project))
            ]
            for table in of_projects
        }


def test_lists_hold_nothing_of_another_project(tenants: Tenants) -> None:
    tenants.bees()
    for method, path in operations(tenants.bees_client):
        if method != "GET" or "{" in path:
            continue
        answer = tenants.bees_client.get(
            path, params={"limit": 200} if path.startswith("/v1") else {}
        )
        if path == "/v1/audit":  # it tells what they asked for themselves
            assert {entry["project"] for entry in answer.json()["data"]} == {"bees"}
            continue
        assert not [thing for thing in tenants.ants.values() if thing in answer.text], path
    names = [m["name"] for m in tenants.ants_client.get("/v1/models").json()["data"]]
    assert names == ["ants"]


def test_what_a_name_means_is_remembered_for_one_project_only(tenants: Tenants) -> None:
    for _ in range(3):  # there is no inference process: 503 is of a model that is known
        for client, status in ((tenants.ants_client, 503), (tenants.bees_client, 404)):
            answer = client.get(f"/v2/models/{tenants.ants.model}/ready")
            assert answer.status_code == status, answer.text


def test_the_same_names_live_side_by_side(tenants: Tenants) -> None:
    with tenants.api.database.write() as connection:
        furnish(connection, tenants.api.data_folder, "bees", "ants")

    def ask(client: httpx2.Client) -> Any:  # noqa: ANN401 - JSON is any
        return client.get("/v1/models/ants").json()

    ants, bees = ask(tenants.ants_client), ask(tenants.bees_client)
    assert ants["default"]["dataset"] == tenants.ants.dataset
    assert bees["default"]["dataset"] != tenants.ants.dataset
    assert tenants.bees_client.delete("/v1/models/ants").status_code == 204
    assert ask(tenants.ants_client) == ants


def test_an_upload_is_the_same_data_set_only_within_a_project(tenants: Tenants) -> None:
    def upload(client: httpx2.Client, key: str | None = None) -> str:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = client.post("/v1/datasets?name=same", content=ARCHIVE, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    first = upload(tenants.ants_client)
    assert upload(tenants.ants_client) == first
    assert upload(tenants.bees_client) != first
    again = upload(tenants.ants_client, "one")
    assert upload(tenants.bees_client, "one") != again
