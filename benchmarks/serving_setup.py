"""What the benchmarks of serving share: photographs, a service, models by the thousand."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "benchmarks")]

import load  # noqa: E402 - after the path
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import safetensors.numpy  # noqa: E402
from load import Load, Requests, post  # noqa: E402

from jobs.archives import pack_artifact  # noqa: E402
from jobs.store import models  # noqa: E402
from jobs.store.database import Database  # noqa: E402
from jobs.store.tables import DEFAULT_PROJECT  # noqa: E402
from models_cache.artifacts import Artifact, parse_artifact, write_artifact  # noqa: E402
from models_cache.blobs import BlobStore  # noqa: E402
from models_cache.durable import sha256_of_file  # noqa: E402
from service.client import Graft, wait_until_ready  # noqa: E402
from service.embedded import embedded  # noqa: E402

ARCHITECTURES = ("mobilenet_v2", "resnet18")
MODEL = "mobilenet_v2"  # the one that is asked alone
CONNECTIONS = 16
_ENGINE_SECONDS = 180.0


def photographs(archive: Path) -> list[bytes]:
    """Return the encoded photographs of the val split."""
    with zipfile.ZipFile(archive) as source:
        names = [n for n in source.namelist() if "val/" in n and n.endswith(".jpg")]
        return [source.read(name) for name in names]


@dataclass(frozen=True)
class Running:
    """A service under measurement.

    Args:
        graft: A client of it.
        port: Where it listens.
        data_folder: Its state.
    """

    graft: Graft
    port: int
    data_folder: Path

    def process(self, name: str) -> psutil.Process:
        """Return its process `api`, `inference` or `worker`."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # a child of a worker that has just ended
                if process.cmdline()[-2:] == ["service.cli.main", name]:
                    return process
        raise RuntimeError(f"there is no process {name}")

    def memory_bytes(self) -> dict[str, int]:
        """Return the resident memory of the processes that answer."""
        return {name: self.process(name).memory_info().rss for name in ("api", "inference")}

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time that the processes that answer have taken."""
        times = {name: self.process(name).cpu_times() for name in ("api", "inference")}
        return {name: each.user + each.system for name, each in times.items()}

    def descriptors(self) -> dict[str, dict[str, int]]:
        """Return how many sockets, files and others each process that answers has open."""
        return {name: _descriptors(self.process(name).pid) for name in ("api", "inference")}


def _descriptors(pid: int) -> dict[str, int]:
    counts = {"sockets": 0, "files": 0, "others": 0}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            target = str(link.readlink())
            other = "files" if target.startswith("/") else "others"
            counts["sockets" if target.startswith("socket:") else other] += 1
    return counts


def tree_seconds(process: psutil.Process) -> float:
    """Return the processor time that a process and those below it have taken."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


@contextmanager
def running(folder: Path, weights: Path, threads: int) -> Iterator[Running]:
    """Run a service over a folder that is kept."""
    catalogues = [str((weights / "catalog.json").absolute()), str(folder / "weights.json")]
    os.environ |= {
        "GRAFT_OFFLINE": "1",
        "GRAFT_DEVICE": "cpu",
        "GRAFT_TRAIN_THREADS": str(threads),
        "GRAFT_SERVE_THREADS": str(threads),
        "GRAFT_LOG_LEVEL": "warning",  # a line per request is for people; said in the report
    }
    with embedded(folder / "data", catalogues) as url, Graft(url) as graft:
        wait_until_ready(graft)
        port = urlsplit(url).port
        assert port is not None
        yield Running(graft, port, folder / "data")


class Bench:
    """Options, photographs, and a service over the kept folder whenever one is asked for.

    Args:
        options: The command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.images = photographs(options.archive)

    def running(self) -> AbstractContextManager[Running]:
        """Return a service to be entered."""
        return running(self.options.folder, self.options.weights, self.options.threads)

    def asking(self, *names: str) -> Requests:
        """Return requests of photographs in turn, of models drawn uniformly."""
        generator = random.Random(0)
        order = [generator.choice(names) for _ in range(len(names) * 8)]

        def request(number: int) -> tuple[bytes, bytes]:
            name = order[number % len(order)]
            image = self.images[number % len(self.images)]
            return post(f"/v1/models/{name}/predict?top_k=1", image)

        return request

    def closed(self, service: Running, *names: str, seconds: float | None = None) -> Load:
        """Load a service with 16 connections; some requests before are not counted."""
        load.closed(service.port, self.asking(*names), connections=CONNECTIONS, seconds=1.0)
        before = service.processor_seconds()
        found = load.closed(
            service.port,
            self.asking(*names),
            connections=CONNECTIONS,
            seconds=seconds or self.options.seconds,
        )
        after = service.processor_seconds()
        taken = {name: after[name] - before[name] for name in before}
        return replace(found, service_seconds=taken)


def prepare(folder: Path, archive: Path, weights: Path, threads: int) -> None:
    """Make a data folder with a head-only model of each architecture and its built engine."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "prepared").exists():
        return
    _write_random_weights(folder, "resnet18")
    with running(folder, weights, threads) as service:
        graft = service.graft
        dataset = graft.wait_for_dataset(graft.upload(archive)["id"])
        for count, name in enumerate(ARCHITECTURES, start=1):
            job = graft.submit(dataset["id"], backbone=name, recipe="head", model=name)
            graft.wait_for_job(job["id"])
            _wait_for_engines(service.data_folder, count)
    (folder / "prepared").write_text(dataset["id"])


def _wait_for_engines(data_folder: Path, count: int) -> None:
    """Wait until so many engines have been built, or found not to be worth it."""
    deadline = time.monotonic() + _ENGINE_SECONDS
    while len(list((data_folder / "cache" / "engines").glob("*.json"))) < count:
        if time.monotonic() > deadline:
            raise RuntimeError("the engine was not built in time")
        time.sleep(0.5)


def _write_random_weights(folder: Path, architecture: str) -> None:
    """Write random values of a network, and a catalogue file that offers them."""
    import torch  # noqa: PLC0415 - the load generator needs none
    import torchvision  # noqa: PLC0415

    torch.manual_seed(0)
    path = folder / f"{architecture}.pth"
    torch.save(torchvision.models.get_model(architecture).state_dict(), path)
    entry = {
        "architecture": architecture, "name": "RANDOM", "file": path.name,
        "sha256": sha256_of_file(path), "head": True, "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "resize": 256, "crop": 224, "license": "none",
        "source": "random values",
    }  # fmt: skip
    (folder / "weights.json").write_text(json.dumps({"weights": [entry]}))


class Clones:
    """Head-only models made from a published one: the same backbone, another head each.

    Args:
        data_folder: Of the service that published it.
        digest: The published artifact.
    """

    def __init__(self, data_folder: Path, digest: str) -> None:
        blobs = BlobStore(data_folder / "blobs")
        self._artifact = parse_artifact(blobs.read(digest))
        contents = {
            name: blobs.read(blob.sha256)
            for name, blob in self._artifact.files.items()
            if name != "artifact.json"
        }
        self._model = safetensors.numpy.load(contents.pop("model.safetensors"))
        self._golden = safetensors.numpy.load(contents.pop("golden.safetensors"))
        self._more = contents

    def write(self, blobs: BlobStore, number: int, classes: tuple[str, ...] = ()) -> Artifact:
        """Write a clone's files; different numbers have different heads and digests."""
        weight = self._model["head.weight"]
        noise = np.random.default_rng(number).normal(0, weight.std(), weight.shape)
        head = {**self._model, "head.weight": weight + noise.astype(np.float32)}
        logits = self._golden["features"] @ head["head.weight"].T + head["head.bias"]
        facts = replace(
            self._artifact.facts,
            classes=classes or self._artifact.facts.classes,
            lineage={**self._artifact.facts.lineage, "clone": number},
        )
        return write_artifact(blobs, facts, head, {**self._golden, "logits": logits}, self._more)

    def archive(self, folder: Path, number: int, classes: tuple[str, ...] = ()) -> Path:
        """Write a clone as an archive to import; return its path."""
        blobs = BlobStore(folder / "blobs")
        artifact = self.write(blobs, number, classes)
        path = folder / f"{number}.zip"
        with path.open("w+b") as file:
            pack_artifact(blobs, artifact.files_as_json(), file)
        return path


def publish_directly(data_folder: Path, clones: Clones, names: dict[str, int]) -> None:
    """Register clones as models with the code that imports use, without HTTP and golden check."""
    blobs = BlobStore(data_folder / "blobs")
    database = Database(f"sqlite:///{data_folder / 'graft.db'}")
    made = {name: clones.write(blobs, number) for name, number in names.items()}
    with database.write() as connection:
        for name, artifact in made.items():
            models.publish(connection, _row(name, artifact), promote=True)
    database.close()


def _row(name: str, artifact: Artifact) -> Any:  # noqa: ANN401
    facts = artifact.facts
    return models.NewVersion(
        project=DEFAULT_PROJECT,
        name=name,
        artifact_digest=artifact.digest,
        files=artifact.files_as_json(),
        task=facts.task,
        architecture=facts.architecture,
        classes=list(facts.classes),
        metrics=dict(facts.metrics),
    )


def register(bench: Bench, names: list[str]) -> None:
    """Register clones under names that are not there yet, without HTTP."""
    with bench.running() as service:
        there = {model["name"] for model in service.graft.models()}
        digest = service.graft.model(MODEL)["default"]["digest"]
    numbers = {name: number for number, name in enumerate(names) if name not in there}
    data = bench.options.folder / "data"
    publish_directly(data, Clones(data, digest), numbers)


def growth_mib(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """Return what each process has more than before."""
    return {name: round((after[name] - before[name]) / (1 << 20), 1) for name in before}
