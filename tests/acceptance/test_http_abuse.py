"""What a service without weights does for odd but honest requests, over real HTTP.

Hostile and slow ones are in `tests/abuse`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from service.client import Graft
from tests import images
from tests.acceptance.running import RunningService, running
from tests.waiting import until

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service without any weights: needs nothing but this repository."""
    with running(tmp_path_factory.mktemp("abuse") / "data") as started:
        yield started


@pytest.fixture
def http(plain: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=plain.url, timeout=30, trust_env=False) as client:
        yield client
        assert client.get("/healthz").status_code == 200


def assert_problem(answer: httpx2.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "instance", "errors"} <= set(body)
    assert body["type"] == f"/problems/{code}"
    assert "Traceback" not in answer.text
    assert str(Path(__file__).parents[2]) not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/docs",
        "/openapi.json",
        "/v1/backbones",
        "/v1/recipes/head/schema",
        "/v1/jobs",
        "/v1/jobs/job_absent",
        "/v1/datasets/ds_absent/images",
        "/absent",
    ],
)
def test_head_is_get_without_the_body(http: httpx2.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers.get(name) == got.headers.get(name)


def test_head_of_a_call_that_changes_something_is_refused(http: httpx2.Client) -> None:
    assert http.head("/v1/jobs/job_absent/cancel").status_code == 405


def test_backbones_are_listed_page_by_page(http: httpx2.Client) -> None:
    names: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/v1/backbones", params={"limit": 30, **after}).json()
        assert len(page["data"]) <= 30
        names += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
    assert names == sorted(set(names))
    assert len(names) > 70
    assert len(http.get("/v1/backbones").json()["data"]) == 20
    assert_problem(http.get("/v1/backbones?limit=0"), 422, "validation-failed")


def test_recipes_are_listed_page_by_page(http: httpx2.Client) -> None:
    whole = http.get("/v1/recipes").json()
    names = [item["id"] for item in whole["data"]]
    assert names == sorted(names)
    assert (len(names) > 3, whole["has_more"], whole["next"]) == (True, False, None)
    found: list[str] = []
    after: dict[str, str] = {}
    for _ in names:
        page = http.get("/v1/recipes", params={"limit": 1, **after}).json()
        found += [item["id"] for item in page["data"]]
        after = {"after": found[-1]}
        assert page["next"] == (found[-1] if page["has_more"] else None)
    assert (found, page["has_more"]) == (names, False)
    assert_problem(http.get("/v1/recipes?limit=0"), 422, "validation-failed")


def test_rejected_dataset_says_why_and_fails_the_jobs_that_wait_for_it(
    plain: RunningService, tmp_path: Path
) -> None:
    path = tmp_path / "one.zip"
    path.write_bytes(images.zip_bytes({"only/1.png": images.shape_bytes("disc", 1)}))
    with plain.client() as graft:
        dataset = graft.upload(path, name="one-class")
        job = graft.submit(dataset["id"], recipe="scratch", backbone="squeezenet1_1")
        until(lambda: graft.dataset(dataset["id"])["status"] == "rejected", 30.0)
        assert graft.dataset(dataset["id"])["problem"]["code"] == "need-two-classes"
        until(lambda: graft.job(job["id"])["status"] == "failed", 10.0)
        assert graft.job(job["id"])["error"]["code"] == "dataset-rejected"
        graft.delete_dataset(dataset["id"])


def test_key_makes_one_dataset_and_refuses_another_body(
    plain: RunningService, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    first.write_bytes(_two_classes(0))
    second.write_bytes(_two_classes(100))
    with plain.client() as graft:
        made = graft.upload(first, name="keyed", idempotency_key="the-key")
        again = graft.upload(first, name="keyed", idempotency_key="the-key")
        assert made["id"] == again["id"]
        same = graft.upload(first, name="keyed")
        assert same["id"] == made["id"]
        with httpx2.Client(base_url=plain.url, trust_env=False) as http:
            answer = http.post(
                "/v1/datasets?name=keyed",
                content=second.read_bytes(),
                headers={"Idempotency-Key": "the-key"},
            )
        assert_problem(answer, 422, "idempotency-mismatch")
        graft.wait_for_dataset(made["id"])


def test_client_that_hangs_up_leaves_nothing(plain: RunningService) -> None:
    host, port = plain.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nPK"
        )
    until(lambda: "POST /v1/datasets 499" in plain.log_path.read_text(), 10.0)
    assert not any((plain.data_folder / "uploads").glob("*"))
    assert "Traceback" not in plain.log_path.read_text()


def test_many_clients_can_list_models_at_once(http: httpx2.Client, plain: RunningService) -> None:
    def list_models(_: int) -> int:
        return httpx2.get(f"{plain.url}/v1/models", timeout=30).status_code

    with ThreadPoolExecutor(60) as pool:
        assert set(pool.map(list_models, range(120))) == {200}


def test_cancelled_check_rejects_the_dataset_and_frees_everything(
    plain: RunningService, tmp_path: Path
) -> None:
    path = images.write_zip(tmp_path / "c.zip", images.class_folders(("disc", "cross")))
    with plain.client() as graft, httpx2.Client(base_url=plain.url, trust_env=False) as http:
        dataset = graft.upload(path, name="to-be-cancelled")
        waiting = graft.submit(dataset["id"], recipe="scratch", backbone="squeezenet1_1")
        graft.act(waiting["id"], "pause")
        ingest = http.get("/v1/jobs?type=ingest").json()["data"][0]
        http.post(f"/v1/jobs/{ingest['id']}/cancel")
        until(lambda: graft.dataset(dataset["id"])["status"] != "processing", 10.0)
        if graft.dataset(dataset["id"])["status"] == "rejected":  # else the check was faster
            assert graft.job(waiting["id"])["status"] == "failed"
            assert http.post(f"/v1/jobs/{ingest['id']}/retry").status_code == 409
            graft.delete_dataset(dataset["id"])


def test_documentation_page_needs_no_other_host(http: httpx2.Client) -> None:
    page = http.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) >= 3
    for source in sources:
        assert source.startswith("/"), source
        assert http.get(source).status_code == 200


def test_openapi_document_lists_every_call_of_the_contract(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path in (
        "/v1/datasets",
        "/v1/datasets/{dataset_id}/versions",
        "/v1/datasets/{dataset_id}/report",
        "/v1/backbones/{architecture}/download",
        "/v1/recipes/{name}/schema",
        "/v1/jobs/{job_id}/events",
        "/v1/models/{name}/aliases/{alias}",
        "/v1/models/{name}/versions/{version}/archive",
        "/v1/models/{name}/versions/{version}/evaluation",
        "/v1/models/{reference}/predict",
    ):
        assert path in paths


def _two_classes(seed: int) -> bytes:
    return images.zip_bytes(
        {
            f"{label}/{index}.png": images.shape_bytes(label, seed + index)
            for label in ("disc", "cross")
            for index in range(6)
        }
    )


def test_small_dataset_trains_from_scratch_and_serves(
    plain: RunningService, tmp_path: Path
) -> None:
    path = tmp_path / "drawn.zip"
    path.write_bytes(_two_classes(200))
    with plain.client() as graft:
        dataset = graft.wait_for_dataset(graft.upload(path, name="drawn")["id"])
        job = graft.submit(
            dataset["id"],
            recipe="scratch",
            backbone="squeezenet1_1",
            parameters={"epochs": 1, "batch_size": 4},
        )
        done = graft.wait_for_job(job["id"])
        assert done["resolved"]["weights"] is None
        answer = graft.predict("drawn", images.shape_bytes("disc", 7))
        assert answer["predictions"][0]["label"] in ("disc", "cross")
        assert abs(sum(s["score"] for s in answer["predictions"][0]["scores"]) - 1) < 1e-4


def test_new_version_holds_the_old_and_the_new_images(
    plain: RunningService, tmp_path: Path
) -> None:
    more = images.zip_bytes(
        {f"disc/{i}.png": images.shape_bytes("disc", 300 + i) for i in range(5)}
    )
    path = tmp_path / "base.zip"
    path.write_bytes(_two_classes(400))
    (tmp_path / "more.zip").write_bytes(more)
    with plain.client() as graft:
        base = graft.wait_for_dataset(graft.upload(path, name="growing")["id"])
        added = graft.add_images(base["id"], tmp_path / "more.zip")
        grown = graft.wait_for_dataset(added["id"])
    assert (grown["version"], grown["parent"]) == (2, base["id"])
    assert _count(grown) == _count(base) + 5
    assert grown["digest"] != base["digest"]


def _count(dataset: dict[str, object]) -> int:
    splits = dataset["splits"]
    assert isinstance(splits, dict)
    return sum(split["images"] for split in splits.values())


def test_client_library_is_usable_without_a_service() -> None:
    with Graft("http://127.0.0.1:9") as graft:
        assert graft.is_ready() is False
