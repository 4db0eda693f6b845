"""Runs every case against one service and keeps what came back, and what it broke."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests import images
from tests.abuse import (
    archives,
    array_files,
    artifacts,
    bodies,
    labels,
    pictures,
    predictions,
    sockets,
)
from tests.abuse.case import ACCEPTED, OK, READY, Archive, Case, Outcome, Picture, Raw, Row
from tests.abuse.sending import Answer, Target, send
from tests.abuse.watching import Watch, leaks_in, memory_bytes
from tests.acceptance.running import RunningService, running
from tests.waiting import until

CASES: tuple[Case, ...] = (
    *archives.CASES,
    *pictures.CASES,
    *labels.CASES,
    *array_files.CASES,
    *bodies.CASES,
    *sockets.CASES,
    *predictions.CASES,
    *artifacts.CASES,
)
_SLOW = tuple(case for case in CASES if isinstance(case.send, Raw) and case.send.pause_seconds)
_PICTURES = tuple(case for case in CASES if isinstance(case.send, Picture))
_ROWS = {case.id: case.send for case in CASES if isinstance(case.send, Row)}
_ENDED_SECONDS = 240.0
_LOOK_SECONDS = 0.05  # the service has better things to do than to be asked


@dataclass
class Record:
    """What became of a case.

    Args:
        outcome: Status and code.
        broken: What always holds and did not.
        finds: Codes in the report of its data set.
    """

    outcome: Outcome
    broken: list[str] = field(default_factory=list)
    finds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Result:
    """What became of all cases on one service.

    Args:
        records: By the id of the case.
        leftovers: Files that should be gone.
        log_faults: Lines of the log that should not be there.
        grown_bytes: Resident memory of the api, afterwards above before.
        more_files: Open files of the api, afterwards above before.
    """

    records: dict[str, Record]
    leftovers: list[str]
    log_faults: list[str]
    grown_bytes: int
    more_files: int

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Status and code of each case."""
        return {name: record.outcome for name, record in self.records.items()}


@contextmanager
def start_service(folder: Path, database_url: str | None = None) -> Iterator[RunningService]:
    """Run a service whose surroundings are watched.

    Args:
        folder: An empty one: the data, the home and the temporary files of the service go there.
        database_url: An empty one; None: of the kind that the tests run on.
    """
    for name in ("home", "tmp", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "etc" / "passwd").write_text("root:x:0:0\n")
    environment = {
        **({} if database_url is None else {"GRAFT_DATABASE_URL": database_url}),
        "GRAFT_HEAD_SECONDS": "2",
        "GRAFT_SLOW_SECONDS": "2",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
    }
    with running(folder / "data", environment=environment) as service:
        yield service


def run(service: RunningService, canary: Path) -> Result:
    """Send every case and check after each that the service is as it was."""
    with httpx2.Client(base_url=service.url, timeout=90, trust_env=False) as http:
        target = _prepared(service, http)
        api = service.pids()["api"]
        memory_before, files_before = memory_bytes(api), psutil.Process(api).num_fds()
        with ThreadPoolExecutor(len(_SLOW)) as pool:
            slow = dict(
                zip(_SLOW, pool.map(lambda case: _sent(target, http, case), _SLOW), strict=True)
            )
        watch = Watch(service, canary)
        records = {case.id: _record(watch, http, case, answer) for case, answer in slow.items()}
        records |= _all_but_pictures(target, watch, http)
        records |= _pictures(target, watch, http)
        records |= _rows(http)
        until(lambda: not watch.leftovers(), 60.0)
        _close_idle(http)
        return Result(
            records,
            watch.leftovers(),
            watch.log_faults(),
            memory_bytes(api) - memory_before,
            psutil.Process(api).num_fds() - files_before,
        )


def _prepared(service: RunningService, http: httpx2.Client) -> Target:
    """Make a data set and a model, and use every part once: what is loaded then is no growth."""
    with service.client() as graft:
        path = images.write_zip(
            service.data_folder.with_name("healthy.zip"),
            images.class_folders(("disc", "square"), per_class=12),
        )
        dataset = graft.wait_for_dataset(graft.upload(path, name="healthy")["id"])
        job = graft.submit(
            dataset["id"],
            recipe="scratch",
            backbone="squeezenet1_1",
            parameters={"epochs": 1, "batch_size": 8},
        )
        graft.upload(path, name="keyed", idempotency_key="the-key")
        graft.wait_for_job(job["id"])
        graft.predict("healthy", images.shape_bytes("disc", 7))
    names = {"dataset": str(dataset["id"]), "job": str(job["id"]), "model": "healthy"}
    return Target(service.url, names)


def _sent(target: Target, http: httpx2.Client, case: Case) -> Answer:
    assert not isinstance(case.send, Row), "rows share an upload"
    return send(target, http, case.send, f"case {case.id}")


def _record(watch: Watch, http: httpx2.Client, case: Case, answer: Answer) -> Record:
    broken = watch.violations(case, answer)
    healthy = http.get("/v1/jobs", params={"limit": 1})
    if healthy.status_code != 200:
        broken.append(f"the next healthy request: {healthy.status_code}")
    return Record(answer.outcome, broken)


def _all_but_pictures(target: Target, watch: Watch, http: httpx2.Client) -> dict[str, Record]:
    records: dict[str, Record] = {}
    checked: dict[str, tuple[Case, str]] = {}
    for case in CASES:
        if case in _SLOW or isinstance(case.send, (Picture, Row)):
            continue
        answer = _sent(target, http, case)
        records[case.id] = _record(watch, http, case, answer)
        if isinstance(case.send, Archive) and answer.dataset is not None:
            checked[case.id] = (case, answer.dataset)
    for number, (_, dataset) in checked.items():
        body = _ended(http, dataset)
        records[number].outcome = Outcome(202, _end_of(body))
        report = http.get(f"/v1/datasets/{dataset}/report")
        records[number].broken += leaks_in(report.text + json.dumps(body), watch.service)
        records[number].finds = _codes_of(report.json())
    return records


def _ended(http: httpx2.Client, dataset: str) -> dict[str, Any]:
    """Return a data set when it has been checked."""
    found: dict[str, Any] = {}

    def is_ended() -> bool:
        time.sleep(_LOOK_SECONDS)
        found.update(http.get(f"/v1/datasets/{dataset}").json())
        return bool(found["status"] != "processing")

    until(is_ended, _ENDED_SECONDS)
    return found


def _end_of(dataset: dict[str, Any]) -> str:
    return str(dataset["problem"]["code"]) if dataset["problem"] else READY


def _codes_of(report: dict[str, Any]) -> frozenset[str]:
    return frozenset(item["code"] for item in (*report["errors"], *report["warnings"]))


def _pictures(target: Target, watch: Watch, http: httpx2.Client) -> dict[str, Record]:
    """Predict each image, and upload all: the check has to come to the same as the prediction."""
    records = {}
    for case in _PICTURES:
        answer = _sent(target, http, case)
        records[case.id] = _record(watch, http, case, answer)
    for number, code in _checked_pictures(http).items():
        predicted = records[number].outcome.code
        if code != predicted:
            records[number].broken.append(f"predicted {predicted}, checked {code}")
    return records


def _checked_pictures(http: httpx2.Client) -> dict[str, str]:
    """Upload every image, those to be refused and those to be kept apart; return the codes."""
    codes: dict[str, str] = {}
    for is_fine in (True, False):
        chosen = {
            f"disc/{case.id}-{case.send.name}": case
            for case in _PICTURES
            if (case.expect.code == OK) is is_fine and isinstance(case.send, Picture)
        }
        files = {
            name if "." in name.rpartition("-")[2] or is_fine else f"{name}.png": case.send.body()
            for name, case in chosen.items()
            if isinstance(case.send, Picture)
        }
        body = images.zip_bytes({**files, **images.class_folders(("square", "cross"))})
        report = _checked(http, body, "pictures" if is_fine else "no pictures")[1]
        found = {item["path"].removesuffix(".png"): item["code"] for item in report["errors"]}
        for path, case in chosen.items():
            codes[case.id] = found.get(path.removesuffix(".png"), OK)
    return codes


def _rows(http: httpx2.Client) -> dict[str, Record]:
    """Upload all rows of metadata, those to be kept and those to be refused apart."""
    fine = {case.id for case in CASES if case.expect == ACCEPTED}
    kept = {number: row for number, row in _ROWS.items() if number in fine}
    wrong = {number: row for number, row in _ROWS.items() if number not in fine}
    classes = _checked(http, labels.archive_of(kept), "labels")[0]["classes"]
    ends = {
        number: READY if unicodedata.normalize("NFC", str(row.label)) in classes else "lost"
        for number, row in kept.items()
    }
    report = _checked(http, labels.archive_of(wrong), "no labels")[1]
    codes = {item["row"]: item["code"] for item in report["errors"] if "row" in item}
    ends |= {
        number: codes.get(place, READY)
        for place, number in enumerate(wrong, start=labels.FIRST_ROW)
    }
    return {number: Record(Outcome(202, code)) for number, code in ends.items()}


def _checked(http: httpx2.Client, body: bytes, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Upload an archive and return its data set and the report, when it has been checked."""
    answer = http.post("/v1/datasets", params={"name": name}, content=body)
    dataset = _ended(http, answer.json()["id"])
    return dataset, http.get(f"/v1/datasets/{dataset['id']}/report").json()


def _close_idle(http: httpx2.Client) -> None:
    """Ask for one more answer on a connection that then ends."""
    http.get("/healthz", headers={"connection": "close"})
