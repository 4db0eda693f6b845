"""SIGTERM under load: what was accepted is answered, jobs are queued again, all exit in time."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from service.client import Graft
from service.free_port import free_port
from tests import images
from tests.acceptance.running import RunningService, descendants, start
from tests.faults import soak
from tests.faults.final_state import lives
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

_DRAINS = 50 if soak.SOAK else 2
_SENDERS = 3
_LOAD_SECONDS = 0.5
_EXIT_SECONDS = 30.0
_LINE_END = b"\r\n"


class Load:
    """Sends one kind of request again and again, each over its own connection.

    Args:
        port: Where the api listens.
        path: Of the request.
        body: Of the request.
    """

    def __init__(self, port: int, path: str, body: bytes) -> None:
        head = (
            f"POST {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: close",
            f"Content-Length: {len(body)}",
        )
        self._request = "\r\n".join(head).encode() + 2 * _LINE_END + body
        self._port = port
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.ended: Counter[str] = Counter()
        self._thread.start()

    def end(self) -> None:
        """Stop sending."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            self.ended[self._send()] += 1

    def _send(self) -> str:
        try:
            connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        except OSError:
            self._ending.wait(0.02)
            return "refused"  # nothing was accepted
        with connection:
            try:
                connection.sendall(self._request)
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            except ConnectionResetError:
                return "reset"
            except OSError as error:
                return f"failed: {error}"
        return _verdict(answer)


def _verdict(answer: bytes) -> str:
    head, separator, body = answer.partition(2 * _LINE_END)
    if not separator:
        return f"failed: cut off after {len(answer)} bytes"
    lines = head.decode().lower().splitlines()
    status = int(lines[0].split()[1])
    lengths = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length")]
    if lengths and len(body) != lengths[0]:
        return "failed: half an answer"
    return "answered" if status in (200, 202) else f"failed: {status}"


def _prepare(service: RunningService, folder: Path) -> str:
    """Train a model to be asked; return a data set for further jobs."""
    archive = images.write_zip(folder / "shapes.zip", images.class_folders(per_class=10))
    with service.client() as graft:
        until(graft.is_ready, 60.0)
        dataset = graft.wait_for_dataset(graft.upload(archive)["id"])
        job = graft.submit(dataset["id"], backbone="squeezenet1_1", recipe="head", model="drained")
        assert graft.wait_for_job(job["id"])["status"] == "succeeded"
        graft.predict("drained", images.shape_bytes("disc", 1))
    return str(dataset["id"])


def test_stopping_under_load_fails_no_request_and_loses_no_job(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port("127.0.0.1")
    catalogue = shared / "weights" / "catalog.json"
    ended: Counter[str] = Counter()
    longest_seconds = 0.0
    job_id: str | None = None
    image = images.shape_bytes("disc", 5)
    archive = images.zip_bytes(images.class_folders(per_class=3))
    for drain in range(_DRAINS):
        service = start(tmp_path / "data", catalogue=catalogue, port=port)
        try:
            if job_id is None:
                dataset_id = _prepare(service, tmp_path)
                job_id = _long_job(service, dataset_id)
            with service.client() as graft:
                _is_working_on(graft, job_id)
                graft.predict("drained", image)  # loaded
            below = descendants(service.process.pid)
            loads = [
                Load(port, "/v1/models/drained/predict", image),
                Load(port, "/v1/models/drained/predict", image),
                Load(port, f"/v1/datasets?name=load-{drain}", archive),
            ]
            time.sleep(_LOAD_SECONDS)
            service.process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            assert service.process.wait(_EXIT_SECONDS) == 0
            longest_seconds = max(longest_seconds, time.monotonic() - told_at)
            assert not [process for process in below if lives(process)]
            assert "worker did not end in time" not in service.log_path.read_text()
            for load in loads:
                load.end()
                ended += load.ended
        finally:
            service.process.kill()
            service.process.wait()
    known = ("answered", "refused", "reset")
    failed = {how: count for how, count in ended.items() if how not in known}
    told = (
        f"{_DRAINS} drains, {ended['answered']} answered, {ended['reset']} reset before the api"
        f" took them, longest exit {longest_seconds:.1f} s"
    )
    with capsys.disabled():
        sys.stdout.write(f"\n{told}, failed {failed}\n")
    assert ended["answered"] >= _DRAINS
    assert failed == {}
    # The kernel resets what it queued and the api had not taken when the listener was closed: at
    # most one connection of each sender.
    assert ended["reset"] <= _SENDERS * _DRAINS
    if soak.SOAK:
        soak.write_figure("drains", f"{told}, 0 failed", "50 drains, 0 failed, <= 60 s", ok=True)


def _long_job(service: RunningService, dataset_id: str) -> str:
    parameters = {"epochs": 500, "batch_size": 8}
    with service.client() as graft:
        job = graft.submit(
            dataset_id,
            backbone="squeezenet1_1",
            recipe="finetune",
            model="long",
            parameters=parameters,
        )
    return str(job["id"])


def _is_working_on(graft: Graft, job_id: str) -> None:
    """Wait until a child trains: a drain of an idle worker shows nothing."""
    until(graft.is_ready, 60.0)
    until(lambda: graft.job(job_id)["phase"] == "train", 60.0, what=str(graft.job(job_id)))
