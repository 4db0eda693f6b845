"""Many clients at once: promotion between two answers, more than there is room for, hang-ups."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx2
import pytest

from service.client import Graft, Json
from tests import images
from tests.acceptance.running import RunningService, running
from tests.waiting import until

pytestmark = pytest.mark.slow

CLIENTS = 16
SWITCHES = 100
LABELS = {1: {"disc", "cross"}, 2: {"round", "crossed"}}
_IMAGES_AT_ONCE = 256  # that the inference process accepts
_OF_A_REQUEST = 32


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose model `switched` has two versions with other labels."""
    folder = tmp_path_factory.mktemp("service")
    with running(folder / "data") as started, started.client() as graft:
        for number, labels in LABELS.items():
            archive = folder / f"{number}.zip"
            archive.write_bytes(_drawn(*sorted(labels)))
            dataset = graft.wait_for_dataset(graft.upload(archive, name=f"drawn-{number}")["id"])
            job = graft.submit(
                dataset["id"],
                recipe="scratch",
                backbone="squeezenet1_1",
                model="switched",
                parameters={"epochs": 1, "batch_size": 4},
            )
            assert graft.wait_for_job(job["id"])["result"]["version"] == number
        yield started


def _drawn(*labels: str) -> bytes:
    shapes = dict(zip(labels, ("cross", "disc"), strict=True))
    return images.zip_bytes(
        {
            f"{label}/{seed}.png": images.shape_bytes(shape, seed)
            for label, shape in shapes.items()
            for seed in range(6)
        }
    )


def _accepted_images(service: RunningService) -> float:
    page = httpx2.get(f"{service.url}/metrics", trust_env=False).raise_for_status().text
    line = next(li for li in page.splitlines() if li.startswith('graft_inference_images{place="a'))
    return float(line.split()[-1])


def test_alias_switched_under_load_gives_no_error_and_each_answer_is_of_one_version(
    service: RunningService,
) -> None:
    with service.client() as graft:
        versions = [graft.predict(f"switched@{number}", _image(0))["model"] for number in LABELS]
    digests = {model["version"]: model["digest"] for model in versions}
    assert len(set(digests.values())) == len(LABELS)
    ended = threading.Event()

    def ask(client: int) -> list[Json]:
        answers = []
        with Graft(service.url) as graft:
            while not ended.is_set():
                answers.append(graft.predict("switched", _image(client)))  # an error is raised
        return answers

    with ThreadPoolExecutor(CLIENTS) as clients, service.client() as graft:
        asking = [clients.submit(ask, client) for client in range(CLIENTS)]
        try:
            for switch in range(SWITCHES):
                graft.set_alias("switched", "default", 1 + switch % 2)
        finally:
            ended.set()
        answers = [answer for each in asking for answer in each.result()]
    seen: Counter[int] = Counter()
    for answer in answers:
        number = answer["model"]["version"]
        assert answer["model"]["digest"] == digests[number], answer
        (prediction,) = answer["predictions"]
        assert {score["label"] for score in prediction["scores"]} == LABELS[number], answer
        seen[number] += 1
    assert set(seen) == set(LABELS), "both versions were asked"


def test_overload_is_refused_with_a_time_to_come_back_and_what_was_accepted_is_answered(
    service: RunningService,
) -> None:
    requests = 2 * _IMAGES_AT_ONCE // _OF_A_REQUEST
    files = [("files", (f"{n}.png", _large_image(n))) for n in range(_OF_A_REQUEST)]

    def ask(_: int) -> httpx2.Response:
        with httpx2.Client(trust_env=False, timeout=120) as http:
            return http.post(f"{service.url}/v1/models/switched@1/predict", files=files)

    with ThreadPoolExecutor(requests) as clients:
        answers = list(clients.map(ask, range(requests)))
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert accepted
    assert refused
    for answer in accepted:
        assert len(answer.json()["predictions"]) == _OF_A_REQUEST
        assert not any("error" in prediction for prediction in answer.json()["predictions"])
    for answer in refused:
        assert answer.status_code == 503, answer.text
        assert answer.json()["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) > 0
    assert _accepted_images(service) == 0
    with service.client() as graft:
        assert graft.predict("switched@1", _image(1))["predictions"]


def test_images_of_clients_that_hang_up_make_room_again(service: RunningService) -> None:
    address = urlsplit(service.url)
    body = _large_image(0)
    head = (
        f"POST /v1/models/switched@1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(_IMAGES_AT_ONCE):  # as many as there is room for, had they stayed
        with socket.create_connection((str(address.hostname), int(address.port or 0))) as client:
            client.sendall(head.encode() + body)
    with service.client() as graft:
        assert graft.predict("switched@1", _image(1))["predictions"]
    until(lambda: _accepted_images(service) == 0, 60)


def _image(seed: int) -> bytes:
    return images.shape_bytes("disc", seed)


def _large_image(seed: int) -> bytes:
    """Return one that takes some milliseconds to decode."""
    return images.encode(images.draw_shape("disc", seed, (1024, 768)))
