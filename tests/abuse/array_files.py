"""D of the catalogue: HDF5 and NumPy files; what they point to is never followed."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.abuse.archives import Canary
from tests.abuse.case import ACCEPTED, Archive, Build, Case, refused, rejected
from tests.arrays import drawn, hdf5_bytes, npy_bytes, npz_bytes, zipped

_ELSEWHERE = "/etc/passwd"
_N = 12
Write = Callable[[h5py.File], object]


def _hdf5(write: Write) -> Build:
    def build() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return hdf5_bytes(Path(folder), write)

    return build


def _beside(images: Write) -> Build:
    """Return what writes labels as well."""

    def write(file: h5py.File) -> None:
        file["labels"] = drawn()[1]
        images(file)

    return _hdf5(write)


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("images", (_N, 8, 8), "u1", external=[(_ELSEWHERE, 0, _N * 64)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((_N, 8, 8), "u1")
    layout[:] = h5py.VirtualSource(_ELSEWHERE, "images", (_N, 8, 8))
    file.create_virtual_dataset("images", layout)


def _external_link(file: h5py.File) -> None:
    file["images"] = h5py.ExternalLink(_ELSEWHERE, "/images")


def _soft_link(file: h5py.File) -> None:
    file["elsewhere"] = drawn()[0]
    file["images"] = h5py.SoftLink("/elsewhere")


def _references(file: h5py.File) -> None:
    file["there"] = drawn()[0]
    file.create_dataset("images", data=[file["there"].ref] * _N, dtype=h5py.ref_dtype)


def _regions(file: h5py.File) -> None:
    file["there"] = drawn()[0]
    regions = [file["there"].regionref[0]] * _N
    file.create_dataset("images", data=regions, dtype=h5py.regionref_dtype)


def _terabyte(file: h5py.File) -> None:
    shape = (1 << 12, 1 << 14, 1 << 14, 1)
    file.create_dataset("images", shape, "u1", chunks=(1, 1 << 10, 1 << 10, 1))


def _packed_zeros(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = np.zeros(300, int)
    zeros = np.zeros((300, 256, 256, 3), np.uint8)
    file.create_dataset("images", data=zeros, compression="gzip", chunks=(20, 256, 256, 3))


def _many_objects(file: h5py.File) -> None:
    for number in range(1001):
        file.create_group(str(number))


def _filtered(number: int) -> Build:
    def images(file: h5py.File) -> None:
        options = {"chunks": (_N, 32, 32, 3), "shuffle": True}
        file.create_dataset("images", (_N, 32, 32, 3), "u1", **options)
        file["images"].id.write_direct_chunk((0, 0, 0, 0), drawn()[0].tobytes(), 0)

    def build() -> bytes:
        shuffle = struct.pack("<HHHH", 2, 8, 1, 1) + b"shuffle\0"
        return _beside(images)().replace(shuffle, struct.pack("<H", number) + shuffle[2:])

    return build


def _endless_heap() -> bytes:
    """Return a file that HDF5 2.0 never ends reading: one wrong size among texts."""

    def write(file: h5py.File) -> None:
        file["images"] = drawn()[0]
        file["labels"] = ["ab"[label] for label in drawn()[1]]

    data = bytearray(_hdf5(write)())
    data[data.index(b"GCOL") + 16 + 6 * 24 + 8] = 255
    return bytes(data)


def _plain(file: h5py.File) -> None:
    file["images"] = drawn()[0]


def _cut_hdf5() -> bytes:
    return _beside(_plain)()[:3000]


def _header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def _npz(images: bytes) -> Build:
    return lambda: zipped({"images.npy": images, "labels.npy": npy_bytes(drawn()[1])})


def _pickled() -> bytes:
    labels = np.array([Canary()] * _N, dtype=object)
    files = {"images.npy": npy_bytes(drawn()[0]), "labels.npy": npy_bytes(labels, True)}
    return zipped(files)


def _case(number: str, what: str, build: Build, code: str) -> Case:
    return Case(number, what, Archive(build), rejected(code), 90.0)


_SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }\n"

CASES = (
    _case("D01-external-link", "external link", _beside(_external_link), "array-not-plain"),
    _case(
        "D01-external-storage", "external storage", _beside(_external_storage), "array-not-plain"
    ),
    _case("D01-virtual", "virtual dataset", _beside(_virtual), "array-not-plain"),
    _case("D01-soft-link", "soft link", _beside(_soft_link), "array-not-plain"),
    _case("D01-references", "object references", _beside(_references), "array-type-unsupported"),
    _case("D01-regions", "region references", _beside(_regions), "array-type-unsupported"),
    _case(
        "D01-filter", "a filter that needs a plugin", _filtered(32015), "array-filter-unsupported"
    ),
    _case("D01-szip", "a filter that is not there", _filtered(4), "array-filter-unsupported"),
    _case("D02-terabyte", "a terabyte in 10 KB", _beside(_terabyte), "archive-bomb"),
    _case("D02-zeros", "zeros, packed", _beside(_packed_zeros), "archive-bomb"),
    _case("D02-objects", "1,001 groups", _hdf5(_many_objects), "too-many-entries"),
    _case("D02-heap", "a heap without end", _endless_heap, "corrupt-archive"),
    _case("D02-cut", "HDF5, cut", _cut_hdf5, "corrupt-archive"),
    _case("D02-missing", "no labels", _hdf5(_plain), "array-missing"),
    _case("D03-objects", "an array of pickles", _pickled, "array-type-unsupported"),
    Case(
        "D03-zeros",
        "npz of zeros",
        Archive(
            lambda: npz_bytes(images=np.zeros((400, 256, 256, 3), np.uint8), labels=np.zeros(400))
        ),
        refused(422, "archive-bomb"),
    ),
    _case(
        "D03-shape",
        "a shape of 10^12",
        _npz(_header(_SHAPE % "(999999999999, 9, 9)")),
        "corrupt-archive",
    ),
    _case(
        "D03-negative", "a negative shape", _npz(_header(_SHAPE % "(-12, 9, 9)")), "corrupt-archive"
    ),
    _case(
        "D03-code",
        "code for a header",
        _npz(_header("__import__('os').abort()\n")),
        "corrupt-archive",
    ),
    _case("D03-brackets", "9,000 brackets", _npz(_header("(" * 9000)), "corrupt-archive"),
    _case("D03-nothing", "an empty array file", _npz(b""), "corrupt-archive"),
    _case(
        "D03-length",
        "fewer labels than images",
        lambda: npz_bytes(images=drawn()[0], labels=np.zeros(3, int)),
        "array-length-mismatch",
    ),
    _case(
        "D03-floats",
        "images of floats",
        lambda: npz_bytes(images=np.full((_N, 8, 8), np.nan), labels=drawn()[1]),
        "array-type-unsupported",
    ),
    Case(
        "D03-parent",
        "an array outside",
        Archive(lambda: zipped({"../images.npy": npy_bytes(drawn()[0])})),
        refused(422, "path-traversal"),
    ),
    Case(
        "D03-fine",
        "npz as it should be",
        Archive(lambda: npz_bytes(images=drawn()[0], labels=drawn()[1])),
        ACCEPTED,
        30.0,
    ),
)
