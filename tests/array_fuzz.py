"""Damages valid npz and HDF5 files at random and reads each as the ingest child does.

`python -m tests.array_fuzz npz|hdf5 TRIES SEED [exec]` prints counts by outcome and every fault as
JSON. A try is a fork of a process that has all libraries loaded, so that neither a crash nor a
loop ends the run; the reader of HDF5 is a fork as well, with all of its limits, or, with `exec`,
the program that the service starts. A try that failed is repeated by its number: it depends on the
seed and the number alone.
"""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from jobs.datasets import array_hdf5_process
from jobs.datasets.array_unpack import array_reader, unpack_arrays
from jobs.datasets.confine import limit_ingest
from jobs.datasets.labelling import label_images
from jobs.datasets.limits import IngestLimits
from jobs.datasets.report import Report
from jobs.errors import DatasetError
from tests.arrays import drawn, encoded_items, encoded_type, npy_bytes, npz_bytes, zipped
from tests.images import encode

LIMITS = IngestLimits(array_cpu_seconds=1, max_unpacked_bytes=64 << 20, max_entry_bytes=16 << 20)
_INGEST_CPU_SECONDS = 10
_WALL_SECONDS = 120.0
_MEMORY_BYTES = 1 << 30
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_LARGE = (0, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)

Damage = Callable[[np.random.Generator, bytearray, bytes], None]


# -- damage -----------------------------------------------------------------------------------


def flip_bits(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    for place in random.integers(len(data), size=random.integers(1, 4)):
        data[place] ^= 1 << int(random.integers(8))


def set_bytes(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    for place in random.integers(len(data), size=random.integers(1, 9)):
        data[place] = int(random.choice(_NUMBERS))


def set_number(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    place, size = int(random.integers(len(data))), int(random.choice([2, 4, 8]))
    value = _LARGE[int(random.integers(len(_LARGE)))]
    data[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def truncate(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    del data[int(random.integers(len(data))) :]


def drop(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    start = int(random.integers(len(data)))
    del data[start : start + int(random.integers(1, 600))]


def splice(random: np.random.Generator, data: bytearray, other: bytes) -> None:
    """Put a part of another valid file over a part of this one, or between two."""
    size = int(random.integers(1, 800))
    start, place = int(random.integers(len(other))), int(random.integers(len(data)))
    end = place + (size if random.random() < 0.7 else 0)
    data[place:end] = other[start : start + size]


def repeat(random: np.random.Generator, data: bytearray, _other: bytes) -> None:
    splice(random, data, bytes(data))


DAMAGES: tuple[Damage, ...] = (
    flip_bits, flip_bits, set_bytes, set_bytes, set_number, truncate, drop, splice, splice, repeat,
)  # fmt: skip


def damaged(random: np.random.Generator, valid: list[bytes]) -> bytes:
    """Return one of the files with one to three kinds of damage."""
    data = bytearray(valid[int(random.integers(len(valid)))])
    other = valid[int(random.integers(len(valid)))]
    for _ in range(int(random.integers(1, 4))):
        if data:
            DAMAGES[int(random.integers(len(DAMAGES)))](random, data, other)
    return bytes(data)


# -- valid files ------------------------------------------------------------------------------


def valid_arrays() -> list[dict[str, Any]]:
    """Return what users would pack: one and several labels, numbers and texts, names, splits."""
    images, labels = drawn(side_px=8)
    sets = np.stack([labels == 0, labels == 1, labels == labels], axis=1)
    names = np.array([b"disc", b"square", b"shape"])
    splits = np.array([b"train"] * 8 + [b"val"] * 4)
    return [
        {"images": images, "labels": labels},
        {"images": images[..., 0], "labels": names[labels], "splits": splits},
        {"images": images, "labels": sets.astype("u1"), "class_names": names},
        {"images": images, "labels": sets, "notes": np.arange(4.0)},
    ]


def valid_npz() -> list[bytes]:
    fortran = {"images": np.asfortranarray(drawn(side_px=8)[0]), "labels": drawn()[1].astype(str)}
    return [
        npz_bytes(compressed, **arrays)
        for arrays in (*valid_arrays(), fortran)
        for compressed in (True, False)
    ]


def valid_hdf5() -> list[bytes]:
    images, labels = drawn(side_px=8)
    texts = [["disc", "Größe"][label] for label in labels]
    files = [encode(image, "PNG") for image in images]

    def chunked(file: h5py.File) -> None:
        options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        file.create_dataset("images", data=images, chunks=(5, 8, 8, 3), **options)
        file["labels"] = texts

    def encoded(file: h5py.File) -> None:
        file.create_dataset("images", data=encoded_items(files), dtype=encoded_type())
        file.create_dataset("labels", data=labels, compression="lzf", chunks=(4,))

    def plain(arrays: dict[str, Any]) -> Callable[[h5py.File], None]:
        def write(file: h5py.File) -> None:
            for name, array in arrays.items():
                file[name] = array

        return write

    writers = [chunked, encoded, *map(plain, valid_arrays())]
    return [_hdf5(write, library) for write in writers for library in ("earliest", "latest")]


def _hdf5(write: Callable[[h5py.File], None], library: str) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=library) as file:
        write(file)
    return buffer.getvalue()


def damaged_npz(random: np.random.Generator, valid: list[bytes]) -> bytes:
    """Return a damaged npz; half of the time an array was damaged before a sound zip was made."""
    if random.random() < 0.5:
        return damaged(random, valid)
    arrays = valid_arrays()[int(random.integers(4))]
    parts = {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}
    chosen = str(random.choice(sorted(parts)))
    parts[chosen] = damaged(random, [parts[chosen], *parts.values()])
    return zipped(parts)


# -- one try ----------------------------------------------------------------------------------


class _ForkedReader:
    """What `subprocess.Popen` would be of the HDF5 reader, without the start of an interpreter."""

    def __init__(self, command: list[str], **_pipes: object) -> None:
        readable, writable = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                os.dup2(writable, 1)
                sys.stdout = os.fdopen(1, "w")
                array_hdf5_process.main(command[-1])
                sys.stdout.flush()
                status = 0
            except BaseException:  # noqa: BLE001 - what a program's end prints
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writable)
        self._status: int | None = None
        self.stdout: IO[bytes] = os.fdopen(readable, "rb")

    def kill(self) -> None:
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self, _seconds: float | None = None) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def read_as_ingest_does(path: Path, folder: Path) -> str:
    """Return `read`, or the code of the refusal; anything else that is raised is a fault."""
    try:
        reader = array_reader(path, LIMITS)
        if reader is None:
            return "taken-for-files"
        (folder / "files").mkdir()
        opened = reader(path, LIMITS, folder / "scratch")
        found = unpack_arrays(opened, folder / "files", Report(), lambda _: None)
        label_images(found, [], LIMITS, Report())
    except DatasetError as error:
        return error.code
    return "read"


def outcome_of(data: bytes, folder: Path) -> tuple[str, str]:
    """Return the outcome of reading a file in a process of its own, and what it printed."""
    path, errors = folder / "upload", folder / "errors"
    path.write_bytes(data)
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
            limit_ingest(
                memory_bytes=_MEMORY_BYTES, cpu_seconds=_INGEST_CPU_SECONDS, file_bytes=1 << 30
            )
            os.write(writable, read_as_ingest_does(path, folder).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - told as the fault that it is
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writable)
    with _reaped(pid, readable) as ended:
        outcome = os.read(readable, 1000).decode() if ended else ""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ended:
        return "fault: hangs", ""
    printed = errors.read_text(errors="replace")[-3000:]
    return (outcome, printed) if status == 0 else (f"fault: status {status}", printed)


@contextmanager
def _reaped(pid: int, readable: int) -> Iterator[bool]:
    """Wait until a process says something or ends; kill it if it does neither."""
    ended = bool(select.select([readable], [], [], _WALL_SECONDS)[0])
    if not ended:
        os.kill(pid, signal.SIGKILL)
    try:
        yield ended
    finally:
        os.close(readable)


def main(kind: str, tries: str, seed: str, start: str = "fork") -> None:
    if start == "fork":
        subprocess.Popen = _ForkedReader  # type: ignore[misc,assignment]
    hdf5 = kind == "hdf5"
    valid, damage = (valid_hdf5(), damaged) if hdf5 else (valid_npz(), damaged_npz)
    outcomes: Counter[str] = Counter()
    faults = []
    first = -len(valid) if start == "fork" else 0  # the valid ones as they are come first
    root = Path(tempfile.mkdtemp(prefix="graft-fuzz-"))
    try:
        for number in range(first, int(tries)):
            folder = root / str(number)
            folder.mkdir()
            if number < 0:
                data = valid[number]
            else:
                data = damage(np.random.default_rng([int(seed), number]), valid)
            outcome, printed = outcome_of(data, folder)
            if number < 0 and outcome != "read":
                outcome = f"fault: a valid file is {outcome}"
            outcomes[outcome] += 1
            if outcome.startswith("fault"):
                faults.append({"try": number, "outcome": outcome, "printed": printed})
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    told = {"outcomes": dict(outcomes.most_common()), "faults": faults}
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
