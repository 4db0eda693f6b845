"""HDF5 files are read in a process of their own: `python -m jobs.datasets.array_hdf5_process`.

The library is C code, and damaged files make it loop for ever or die. That costs this process and
one upload: it can write nothing but its answers, its memory is bounded, and so is its processor
time from one picture to the next.

Frames on standard output: `<I` length and JSON, then, for a picture, its bytes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from jobs.datasets.array_hdf5 import open_hdf5
from jobs.datasets.array_rules import ArrayFile, Pixels
from jobs.datasets.confine import allow_cpu, limit_memory
from jobs.datasets.decoder import LENGTH
from jobs.datasets.errors import CorruptArchive
from jobs.datasets.limits import IngestLimits
from jobs.errors import DatasetError
from jobs.processes import die_with_parent
from models_cache.errors import from_wire, to_wire

_DYING_SECONDS = 5.0
_FILE = "the file"


@contextmanager
def open_hdf5_apart(path: Path, limits: IngestLimits, _scratch: Path) -> Iterator[ArrayFile]:
    """Open an HDF5 file in another process; otherwise as `array_hdf5.open_hdf5`.

    Raises:
        DatasetError: As there; also while pictures are read.
        CorruptArchive: Also if the library loops or dies.
    """
    spec = {"path": str(path), "limits": limits.as_json(), "parent_pid": os.getpid()}
    command = [sys.executable, "-m", "jobs.datasets.array_hdf5_process", json.dumps(spec)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - our own module
    assert process.stdout is not None
    try:
        answers = _Answers(process, process.stdout, limits.array_cpu_seconds)
        facts = answers.read()
        pictures = answers.pictures(facts["count"])
        yield ArrayFile(
            facts["count"],
            facts["columns"],
            facts["label_columns"],
            facts["others"],
            lambda: pictures,
        )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Answers:
    """What the process says.

    Args:
        process: Asked why it ended, if it does.
        frames: Its standard output.
        cpu_seconds: Processor time that it has for one part of the file.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], frames: IO[bytes], cpu_seconds: int
    ) -> None:
        self._process = process
        self._frames = frames
        self._cpu_seconds = cpu_seconds

    def pictures(self, count: int) -> Iterator[Pixels | bytes]:
        """Yield so many pictures."""
        for _ in range(count):
            facts = self.read()
            data = self._exactly(facts["size"])
            if facts["shape"] is None:
                yield data
            else:
                yield np.frombuffer(data, np.uint8).reshape(facts["shape"])

    def read(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            DatasetError: The process refuses the file, or died of it.
        """
        value: dict[str, Any] = json.loads(
            self._exactly(*LENGTH.unpack(self._exactly(LENGTH.size)))
        )
        if "code" in value:
            raise from_wire(value)
        return value

    def _exactly(self, size_bytes: int) -> bytes:
        data = self._frames.read(size_bytes)
        if len(data) < size_bytes:
            raise self._verdict()
        return data

    def _verdict(self) -> Exception:
        """Return why the process ended without an answer."""
        status = self._process.wait(_DYING_SECONDS)
        if status == -signal.SIGXCPU:
            reason = (
                f"HDF5 takes more than {self._cpu_seconds} s of processor time for one part of it"
            )
            return CorruptArchive(_FILE, reason)
        if status < 0:
            return CorruptArchive(_FILE, f"HDF5 died of it (signal {-status})")
        return RuntimeError(f"the process that reads HDF5 ended with status {status}")


def main(argument: str) -> None:
    """Answer with what the file holds and then with its pictures, or with why it is refused."""
    spec = json.loads(argument)
    die_with_parent(spec["parent_pid"])
    limits = IngestLimits.from_json(spec["limits"])
    limit_memory(limits.ingest_memory_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    answers = sys.stdout.buffer
    try:
        allow_cpu(limits.array_cpu_seconds)
        path = Path(spec["path"])
        with open_hdf5(path, limits, path) as arrays:
            facts = {
                "count": arrays.count,
                "columns": dict(arrays.columns),
                "label_columns": arrays.label_columns,
                "others": list(arrays.others),
            }
            _answer(answers, facts)
            allow_cpu(limits.array_cpu_seconds)
            for picture in arrays.pictures():
                _send(answers, picture)
                allow_cpu(limits.array_cpu_seconds)
    except DatasetError as error:
        _answer(answers, to_wire(error))


def _send(answers: BinaryIO, picture: Pixels | bytes) -> None:
    if isinstance(picture, bytes):
        _answer(answers, {"shape": None, "size": len(picture)})
        answers.write(picture)
    else:
        _answer(answers, {"shape": picture.shape, "size": picture.nbytes})
        answers.write(np.ascontiguousarray(picture).data)


def _answer(answers: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    answers.write(LENGTH.pack(len(data)) + data)


if __name__ == "__main__":
    main(sys.argv[1])
