"""Array files: what of npz and HDF5 is taken, and what is refused and why."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.datasets.archive import quick_check
from jobs.datasets.array_hdf5 import open_hdf5
from jobs.datasets.array_hdf5_process import open_hdf5_apart
from jobs.datasets.array_unpack import OpenArrays, array_reader, unpack_arrays
from jobs.datasets.labelling import label_images
from jobs.datasets.limits import IngestLimits
from jobs.datasets.report import Report
from jobs.datasets.unpack import Unpacked
from jobs.errors import DatasetError
from tests.arrays import (
    drawn,
    encoded_items,
    encoded_type,
    hdf5_bytes,
    npy_bytes,
    npz_bytes,
    zipped,
)
from tests.images import encode, zip_bytes

LIMITS = IngestLimits()
SECRET = b"root of all secrets " * 8
N = 12


def unpacked(
    folder: Path,
    data: bytes,
    limits: IngestLimits = LIMITS,
    report: Report | None = None,
    reader: OpenArrays | None = None,
) -> Unpacked:
    path = folder / "upload"
    path.write_bytes(data)
    if quick_check(path, limits) == "hdf5":
        reader = reader or open_hdf5  # here, which is faster than in its own process
    reader = reader or array_reader(path, limits)
    assert reader is not None, "it was taken for an archive of files"
    (folder / "files").mkdir()
    opened = reader(path, limits, folder / "scratch")
    return unpack_arrays(opened, folder / "files", report or Report(), lambda _: None)


def pictures(found: Unpacked) -> NDArray[Any]:
    return np.stack([np.asarray(Image.open(file.path)) for file in found.images.values()])


def spellings(found: Unpacked) -> list[str]:
    assert found.labels is not None
    return [label.spelling for label in found.labels.values()]


def refused(
    folder: Path,
    data: bytes,
    limits: IngestLimits = LIMITS,
    reader: OpenArrays | None = None,
) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        unpacked(folder, data, limits, reader=reader)
    for file in folder.rglob("files/*"):
        assert SECRET[:20] not in file.read_bytes()
    return caught.value


def as_hdf5(folder: Path, **arrays: Any) -> bytes:  # noqa: ANN401 - what h5py takes
    def write(file: h5py.File) -> None:
        for name, array in arrays.items():
            file[name] = array

    return hdf5_bytes(folder, write)


def as_npz(folder: Path, **arrays: Any) -> bytes:  # noqa: ANN401 - what numpy takes
    return npz_bytes(**arrays)


PACKERS = pytest.mark.parametrize("pack", [as_hdf5, as_npz])
Pack = Callable[..., bytes]

# -- what is understood -----------------------------------------------------------------------


@PACKERS
@pytest.mark.parametrize("form", ["colour", "grey", "grey with an axis"])
def test_pictures_come_out_with_every_bit(tmp_path: Path, pack: Pack, form: str) -> None:
    images, labels = drawn()
    images = images if form == "colour" else images[..., 0]
    given = images[..., None] if form == "grey with an axis" else images
    found = unpacked(tmp_path, pack(tmp_path, images=given, labels=labels))
    np.testing.assert_array_equal(pictures(found), images)
    assert spellings(found) == [str(label) for label in labels]
    assert found.files == N
    assert list(found.images)[:2] == ["images/00.png", "images/01.png"]


@PACKERS
@pytest.mark.parametrize("dtype", [">i8", "<i2", "u1", ">u4"])
def test_labels_of_any_integer_type_are_indices_into_class_names(
    tmp_path: Path, pack: Pack, dtype: str
) -> None:
    images, labels = drawn()
    names = np.array([b"disc", "Größe".encode()])
    data = pack(tmp_path, images=images, labels=labels.astype(dtype), class_names=names)
    assert spellings(unpacked(tmp_path, data))[:3] == ["disc", "Größe", "disc"]


@PACKERS
def test_labels_may_be_texts_and_splits_given(tmp_path: Path, pack: Pack) -> None:
    images, labels = drawn()
    texts = np.array([[b"ant"], [b"bee"]])[labels]  # a column vector
    splits = np.array([b"train"] * 8 + [b"Valid"] * 2 + [b"test"] * 2)
    found = unpacked(tmp_path, pack(tmp_path, images=images, labels=texts, splits=splits))
    assert found.labels is not None
    given = [(label.split, label.spelling) for label in found.labels.values()]
    assert given[:2] == [("train", "ant"), ("train", "bee")]
    assert [split for split, _ in given[7:]] == ["train", "val", "val", "test", "test"]
    assert next(iter(found.images)) == "train/images/00.png"


SETS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]] * (N // 3))


@PACKERS
@pytest.mark.parametrize("dtype", ["u1", "?", "<i8", ">i2"])
def test_labels_with_a_column_for_each_class_are_several(
    tmp_path: Path, pack: Pack, dtype: str
) -> None:
    names = np.array([b"ant", b"bee", "Käfer".encode()])
    data = pack(tmp_path, images=drawn()[0], labels=SETS.astype(dtype), class_names=names)
    found = unpacked(tmp_path, data)
    assert found.several
    assert spellings(found)[:3] == ["ant", "Käfer|bee", ""]
    labelled = label_images(found, [], LIMITS, Report())
    assert [image.names for image in labelled[:3]] == [("ant",), ("Käfer", "bee"), ()]


@PACKERS
def test_columns_without_names_are_called_by_their_numbers(tmp_path: Path, pack: Pack) -> None:
    found = unpacked(tmp_path, pack(tmp_path, images=drawn()[0], labels=SETS))
    assert spellings(found)[:3] == ["0", "1|2", ""]


def test_several_labels_in_fortran_order_are_the_same(tmp_path: Path) -> None:
    data = npz_bytes(images=drawn()[0], labels=np.asfortranarray(SETS))
    assert spellings(unpacked(tmp_path, data))[:3] == ["0", "1|2", ""]


@PACKERS
def test_a_cell_that_is_neither_0_nor_1_is_named_by_row_and_column(
    tmp_path: Path, pack: Pack
) -> None:
    wrong = SETS.copy()
    wrong[4, 2], wrong[7, 0] = 2, -1
    error = refused(tmp_path, pack(tmp_path, images=drawn()[0], labels=wrong))
    assert error.code == "array-cells-invalid"
    assert error.facts["cells"] == [[4, 2, 2], [7, 0, -1]]
    assert "2 of the 36 cells" in str(error)


@PACKERS
@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([b"ant", b"bee"], "array-names-mismatch"),
        ([b"ant", b"bee", b"c", b"d"], "array-names-mismatch"),
        ([b"ant", b"bee|c", b"d"], "array-values-invalid"),
        ([b"ant", b" ", b"d"], "array-values-invalid"),
        ([b"ant", b"bee", b" ant"], "array-values-invalid"),
    ],
)
def test_names_that_do_not_fit_the_columns_are_refused(
    tmp_path: Path, pack: Pack, names: list[bytes], code: str
) -> None:
    data = pack(tmp_path, images=drawn()[0], labels=SETS, class_names=names)
    assert refused(tmp_path, data).code == code


@PACKERS
def test_columns_and_labels_of_all_images_are_bounded(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack(tmp_path, images=drawn()[0], labels=SETS)
    assert refused(tmp_path, data, IngestLimits(max_classes=2)).code == "too-many-classes"
    monkeypatch.setattr("jobs.datasets.array_rules._MAX_LABELS", 11)
    folder = tmp_path / "again"
    folder.mkdir()
    assert refused(folder, data).code == "array-too-large"


def test_several_labels_of_hdf5_come_out_of_its_process(tmp_path: Path) -> None:
    data = as_hdf5(tmp_path, images=drawn()[0], labels=SETS.astype(bool))
    found = unpacked(tmp_path, data, reader=open_hdf5_apart)
    assert found.several
    assert spellings(found)[:3] == ["0", "1|2", ""]


def test_npz_takes_unicode_texts_and_fortran_order(tmp_path: Path) -> None:
    images, labels = drawn()
    texts = np.array(["Ameise", "Böse 🐝"])[labels]
    fortran = np.asfortranarray(images)
    found = unpacked(tmp_path, npz_bytes(images=fortran, labels=texts))
    np.testing.assert_array_equal(pictures(found), images)
    assert spellings(found)[1] == "Böse 🐝"


def test_fortran_order_is_gathered_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = drawn(side_px=16)
    monkeypatch.setattr("jobs.datasets.array_npz._BLOCK_BYTES", 5 * 16 * 16 * 3)
    found = unpacked(tmp_path, npz_bytes(images=np.asfortranarray(images), labels=labels))
    np.testing.assert_array_equal(pictures(found), images)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"chunks": (5, 7, 9, 2)},
        {"chunks": (1, 32, 32, 3)},
    ],
    ids=str,
)
def test_hdf5_may_be_chunked_and_packed(tmp_path: Path, options: dict[str, Any]) -> None:
    images, labels = drawn()

    def write(file: h5py.File) -> None:
        file.create_dataset("images", data=images, **options)
        file["labels"] = [("bee", "ant")[label] for label in labels]  # texts of any length

    found = unpacked(tmp_path, hdf5_bytes(tmp_path, write))
    np.testing.assert_array_equal(pictures(found), images)
    assert spellings(found)[:2] == ["bee", "ant"]


def test_hdf5_may_hold_encoded_images(tmp_path: Path) -> None:
    images, labels = drawn()
    files = [encode(image, "JPEG" if i % 2 else "PNG") for i, image in enumerate(images)]

    def write(file: h5py.File) -> None:
        file.create_dataset("images", data=encoded_items(files), dtype=encoded_type())
        file["labels"] = labels

    found = unpacked(tmp_path, hdf5_bytes(tmp_path, write))
    assert [file.path.read_bytes() for file in found.images.values()] == files
    assert next(iter(found.images)) == "images/00"


@PACKERS
def test_other_arrays_are_named_and_never_read(tmp_path: Path, pack: Pack) -> None:
    images, labels = drawn()
    report = Report()
    unpacked(tmp_path, pack(tmp_path, images=images, labels=labels, weights=images), LIMITS, report)
    [ignored] = report.as_json()["ignored"]
    assert ignored["path"].startswith("weights")


def test_a_zip_with_images_beside_arrays_is_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(zip_bytes({"images.npy": b"x", "ants/1.jpg": b"x"}))
    assert array_reader(path, LIMITS) is None


# -- what does not fit ------------------------------------------------------------------------


@PACKERS
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _, n: {"labels": n}, "array-missing"),
        (lambda i, _: {"images": i}, "array-missing"),
        (lambda i, n: {"images": i / 255, "labels": n}, "array-type-unsupported"),
        (lambda i, n: {"images": i.astype("i4"), "labels": n}, "array-type-unsupported"),
        (lambda i, n: {"images": i.transpose(0, 3, 1, 2), "labels": n}, "array-type-unsupported"),
        (lambda i, n: {"images": i[0], "labels": n[:32]}, "array-length-mismatch"),
        (lambda i, n: {"images": i[:, :0], "labels": n}, "array-type-unsupported"),
        (lambda i, n: {"images": i[:0], "labels": n[:0]}, "empty-dataset"),
        (lambda i, n: {"images": i, "labels": n[:-1]}, "array-length-mismatch"),
        (lambda i, n: {"images": i, "labels": n[:0]}, "array-length-mismatch"),
        (lambda i, n: {"images": i, "labels": n * 1.0}, "array-type-unsupported"),
        (lambda i, n: {"images": i, "labels": n == 1}, "array-type-unsupported"),
        (lambda i, n: {"images": i, "labels": np.eye(2, dtype="f4")[n]}, "array-type-unsupported"),
        (lambda i, _: {"images": i, "labels": SETS[:-1]}, "array-length-mismatch"),
        (lambda i, n: {"images": i, "labels": np.stack([n, n], 1)[..., None]},
         "array-type-unsupported"),
        (lambda i, n: {"images": i, "labels": np.where(n, np.nan, 1.0)}, "array-values-invalid"),
        (lambda i, _: {"images": i, "labels": np.array([b"\xff"] * N)}, "array-values-invalid"),
        (lambda i, n: {"images": i, "labels": n, "class_names": [b"a"]}, "array-values-invalid"),
        (lambda i, n: {"images": i, "labels": -n, "class_names": [b"a", b"b"]},
         "array-values-invalid"),
        (lambda i, n: {"images": i, "labels": n, "class_names": [1, 2]}, "array-type-unsupported"),
        (lambda i, n: {"images": i, "labels": n, "splits": [b"train"]}, "array-length-mismatch"),
        (lambda i, n: {"images": i, "labels": n, "splits": [b"fold1"] * N}, "array-values-invalid"),
        (lambda i, n: {"images": i, "labels": n, "splits": [b"val"] * N}, "array-values-invalid"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, pack: Pack, change: Callable[..., dict[str, Any]], code: str
) -> None:
    error = refused(tmp_path, pack(tmp_path, **change(*drawn())))
    assert error.code == code


def test_a_refusal_says_what_which_how_many_and_what_to_do(tmp_path: Path) -> None:
    images, labels = drawn()
    wrong = npz_bytes(images=images, labels=np.where(labels, np.nan, 0.0))
    assert str(refused(tmp_path, wrong)) == (
        "6 of the 12 items of 'labels' are NaN; give every image a label; the first are items "
        "[1, 3, 5, 7, 9, 11]"
    )


@PACKERS
def test_names_of_classes_are_judged_as_ever(tmp_path: Path, pack: Pack) -> None:
    images, labels = drawn()
    data = pack(tmp_path, images=images, labels=labels, class_names=[b"ant", b"ANT"])
    with pytest.raises(DatasetError) as caught:
        label_images(unpacked(tmp_path, data), [], LIMITS, Report())
    assert caught.value.code == "class-collision"


@PACKERS
def test_limits_of_uploads_hold_for_arrays(tmp_path: Path, pack: Pack) -> None:
    images, labels = drawn()
    data = pack(tmp_path, images=images, labels=labels)
    tight = {
        "too-many-entries": IngestLimits(max_entries=N - 1),
        "array-too-large": IngestLimits(max_side_px=16),
        "archive-too-large": IngestLimits(max_unpacked_bytes=1000),
    }
    for number, (code, limits) in enumerate(tight.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert refused(folder, data, limits).code == code


# -- HDF5 that leads elsewhere, lies or is damaged --------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine; an upload knows its path."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def external_storage(file: h5py.File, secret: Path) -> None:
    size = len(SECRET) // N
    file.create_dataset("images", (N, 1, size), "u1", external=[(str(secret), 0, N * size)])


def external_link(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_name("other.h5"), "w") as other:
        other["images"] = drawn()[0]
    file["images"] = h5py.ExternalLink(str(secret.with_name("other.h5")), "/images")


def virtual(file: h5py.File, secret: Path) -> None:
    with h5py.File(secret.with_name("other.h5"), "w") as other:
        other["images"] = drawn()[0]
    layout = h5py.VirtualLayout((N, 32, 32, 3), "u1")
    layout[:] = h5py.VirtualSource(secret.with_name("other.h5"), "images", (N, 32, 32, 3))
    file.create_virtual_dataset("images", layout)


def soft_link(file: h5py.File, secret: Path) -> None:
    file["elsewhere"] = drawn()[0]
    file["images"] = h5py.SoftLink("/elsewhere")


def group(file: h5py.File, secret: Path) -> None:
    file.create_group("images")


def committed(file: h5py.File, secret: Path) -> None:
    file["kind"] = np.dtype("u1")
    file.create_dataset("images", data=drawn()[0], dtype=file["kind"])


def unwritten(file: h5py.File, secret: Path) -> None:
    file.create_dataset("images", (N, 32, 32, 3), "u1", chunks=(2, 32, 32, 3))
    file["images"][:4] = drawn()[0][:4]


def never_written(file: h5py.File, secret: Path) -> None:
    file.create_dataset("images", (N, 32, 32, 3), "u1")


def no_space(file: h5py.File, secret: Path) -> None:
    file["images"] = h5py.Empty("u1")


@pytest.mark.parametrize(
    "write",
    [external_storage, external_link, virtual, soft_link, group, committed, unwritten,
     never_written, no_space],
)  # fmt: skip
@pytest.mark.parametrize("name", ["images", "labels"])
def test_what_is_not_stored_in_the_file_is_never_followed(
    tmp_path: Path, secret: Path, write: Callable[[h5py.File, Path], None], name: str
) -> None:
    def build(file: h5py.File) -> None:
        write(file, secret)
        if name == "labels":
            file.move("images", "labels")
            file["images"] = drawn()[0]
        else:
            file["labels"] = drawn()[1]

    error = refused(tmp_path, hdf5_bytes(tmp_path, build))
    assert error.code == "array-not-plain"
    assert error.facts["name"] == name


def test_external_storage_would_give_the_machine_away_if_it_were_read(
    tmp_path: Path, secret: Path
) -> None:
    """What makes the refusals above necessary: the library itself follows."""
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        external_storage(file, secret)
    with h5py.File(tmp_path / "evil.h5", "r") as file:
        assert file["images"][:].tobytes().startswith(SECRET[:20])


def compound(file: h5py.File) -> None:
    file["images"] = np.zeros((N, 8, 8), dtype=[("r", "u1"), ("g", "u1")])


def references(file: h5py.File) -> None:
    file["there"] = drawn()[0]
    region = file["there"].regionref[0]
    file.create_dataset("images", data=[region] * N, dtype=h5py.regionref_dtype)


def objects(file: h5py.File) -> None:
    file["there"] = drawn()[0]
    file.create_dataset("images", data=[file["there"].ref] * N, dtype=h5py.ref_dtype)


def opaque(file: h5py.File) -> None:
    file["images"] = np.zeros((N, 8, 8), "V3")


def long_integers(file: h5py.File) -> None:
    file.create_dataset("images", (N,), h5py.vlen_dtype(np.int32))
    file["images"][:] = [np.arange(3)] * N


@pytest.mark.parametrize("write", [compound, references, objects, opaque, long_integers])
def test_strange_types_are_refused(tmp_path: Path, write: Callable[[h5py.File], None]) -> None:
    def build(file: h5py.File) -> None:
        write(file)
        file["labels"] = drawn()[1]

    assert refused(tmp_path, hdf5_bytes(tmp_path, build)).code == "array-type-unsupported"


def test_labels_that_are_references_are_refused(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        file["images"] = drawn()[0]
        file.create_dataset("labels", data=[file["images"].ref] * N, dtype=h5py.ref_dtype)

    assert refused(tmp_path, hdf5_bytes(tmp_path, build)).code == "array-type-unsupported"


def hdf5_with_filter(folder: Path, number: int) -> bytes:
    """Return a file whose images are packed by a filter of that number, without a plugin."""

    def build(file: h5py.File) -> None:
        file["labels"] = drawn()[1]
        file.create_dataset("images", (N, 32, 32, 3), "u1", chunks=(N, 32, 32, 3), shuffle=True)
        file["images"].id.write_direct_chunk((0, 0, 0, 0), drawn()[0].tobytes(), 0)

    data = hdf5_bytes(folder, build)
    shuffle = struct.pack("<HHHH", 2, 8, 1, 1) + b"shuffle\0"
    assert data.count(shuffle) == 1
    return data.replace(shuffle, struct.pack("<HHHH", number, 8, 1, 1) + b"shuffle\0")


@pytest.mark.parametrize("number", [4, 5, 6, 307, 32001, 32015])
def test_filters_that_need_a_plugin_are_refused(tmp_path: Path, number: int) -> None:
    error = refused(tmp_path, hdf5_with_filter(tmp_path, number))
    assert error.code == "array-filter-unsupported"
    assert error.facts["number"] == number


def test_the_library_loads_no_plugin(tmp_path: Path) -> None:
    script = (
        "from jobs.datasets.array_hdf5 import _library\n"
        "h5py = _library()\n"
        "h5py.h5z.filter_avail(32015)\n"
        "with h5py.File(sys.argv[1]) as file: file['images'][0]\n"
    )
    path = tmp_path / "filtered.h5"
    path.write_bytes(hdf5_with_filter(tmp_path, 32015))
    command = [sys.executable, "-c", "import sys\n" + script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "dynamically loaded plugin filters" in done.stderr or "disabled" in done.stderr


def test_a_small_file_that_claims_a_terabyte_is_a_bomb(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        file["labels"] = drawn()[1]
        shape = (1 << 12, 1 << 14, 1 << 14, 1)
        file.create_dataset("images", shape, "u1", chunks=(1, 1 << 10, 1 << 10, 1))

    data = hdf5_bytes(tmp_path, build)
    assert len(data) < 10_000
    assert refused(tmp_path, data).code == "archive-bomb"


def test_zeros_that_are_packed_a_thousandfold_are_a_bomb(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        file["labels"] = np.zeros(600, int)
        zeros = np.zeros((600, 256, 256, 3), np.uint8)
        file.create_dataset("images", data=zeros, compression="gzip", chunks=(20, 256, 256, 3))

    assert refused(tmp_path, hdf5_bytes(tmp_path, build)).code == "archive-bomb"


def test_many_items_of_the_same_encoded_bytes_are_counted_each_time(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        file["labels"] = np.zeros(N, int)
        file.create_dataset(
            "images", data=encoded_items([bytes(100_000)] * N), dtype=encoded_type()
        )
        # All items point where the first one does, as a hostile writer would have it

    data = hdf5_bytes(tmp_path, build)
    error = refused(tmp_path, data, IngestLimits(max_unpacked_bytes=500_000))
    assert error.code == "archive-too-large"
    folder = tmp_path / "again"
    folder.mkdir()
    assert refused(folder, data, IngestLimits(max_entry_bytes=99_999)).code == "entry-too-large"


def test_chunks_that_span_too_many_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.datasets.array_hdf5._MAX_BLOCK_BYTES", 10_000)

    def build(file: h5py.File) -> None:
        file["labels"] = drawn()[1]
        file.create_dataset("images", data=drawn()[0], chunks=(N, 1, 1, 1))

    data = hdf5_bytes(tmp_path, build)
    assert refused(tmp_path, data).code == "array-too-large"


def test_too_many_objects_are_not_even_listed(tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        for number in range(1001):
            file.create_group(str(number))

    assert refused(tmp_path, hdf5_bytes(tmp_path, build)).code == "too-many-entries"


@pytest.mark.parametrize("keep", [8, 100, 2000, 20_000])
def test_a_truncated_hdf5_file_is_refused(tmp_path: Path, keep: int) -> None:
    images, labels = drawn()
    data = as_hdf5(tmp_path, images=images, labels=labels)
    assert refused(tmp_path, data[:keep]).code in ("corrupt-archive", "array-missing")


def damaged_chunk(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Return a file whose pictures fail after the first ones."""

    def build(file: h5py.File) -> None:
        file["labels"] = labels
        file.create_dataset("images", data=images, chunks=(1, 32, 32, 3), fletcher32=True)

    data = hdf5_bytes(folder, build)
    last = images[-1].tobytes()
    return data.replace(last, bytes(len(last)))


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    data = damaged_chunk(tmp_path, *drawn())
    assert refused(tmp_path, data).code == "corrupt-archive"


def test_hdf5_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    images, labels = drawn()
    data = as_hdf5(tmp_path, images=images, labels=labels, class_names=["ä", "b"])
    path = tmp_path / "upload"
    path.write_bytes(data)
    assert array_reader(path, LIMITS) is open_hdf5_apart
    found = unpacked(tmp_path, data, reader=open_hdf5_apart)
    np.testing.assert_array_equal(pictures(found), images)
    assert spellings(found)[:2] == ["ä", "b"]


def test_what_that_process_refuses_is_told_by_the_same_error(tmp_path: Path) -> None:
    images, labels = drawn()
    error = refused(tmp_path, as_hdf5(tmp_path, images=images), reader=open_hdf5_apart)
    assert error.facts == {"name": "labels", "found": ["images"]}
    folder = tmp_path / "later"
    folder.mkdir()
    data = damaged_chunk(folder, images, labels)
    assert refused(folder, data, reader=open_hdf5_apart).code == "corrupt-archive"


def test_a_heap_that_loops_costs_a_second_and_the_upload(tmp_path: Path) -> None:
    """HDF5 2.0 never ends reading this: one wrong size among the texts of any length."""

    def build(file: h5py.File) -> None:
        file["images"] = drawn()[0]
        file["labels"] = ["ab"[label] for label in drawn()[1]]

    data = bytearray(hdf5_bytes(tmp_path, build))
    heap, header_bytes, item_bytes, size_at = data.index(b"GCOL"), 16, 24, 8
    data[heap + header_bytes + 6 * item_bytes + size_at] = 255
    error = refused(tmp_path, bytes(data), IngestLimits(array_cpu_seconds=1), open_hdf5_apart)
    assert error.code == "corrupt-archive"
    assert "processor time" in str(error)


def test_an_installation_without_h5py_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = drawn()
    data = as_hdf5(tmp_path, images=images, labels=labels)
    monkeypatch.setitem(sys.modules, "h5py", None)
    error = refused(tmp_path, data)
    assert error.code == "hdf5-unavailable"
    assert "pip install h5py" in str(error)


# -- npz that lies, or is damaged -------------------------------------------------------------


class _Canary:
    """Unpickling it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("canary-was-called"),))


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    images, _ = drawn()
    objects_array = np.array([_Canary()] * N, dtype=object)
    files = {
        "images.npy": npy_bytes(images),
        "labels.npy": npy_bytes(objects_array, allow_pickle=True),
    }
    assert refused(tmp_path, zipped(files)).code == "array-type-unsupported"
    assert not Path("canary-was-called").exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../images.npy", "path-traversal"),
        ("/etc/images.npy", "absolute-path"),
        ("a/../../images.npy", "path-traversal"),
        ("sub/images.npy", "array-missing"),
    ],
)
def test_names_that_are_paths_are_refused(tmp_path: Path, name: str, code: str) -> None:
    images, labels = drawn()
    data = zipped({name: npy_bytes(images), "labels.npy": npy_bytes(labels)})
    assert refused(tmp_path, data).code == code


def test_a_zip_bomb_of_arrays_is_refused(tmp_path: Path) -> None:
    images = np.zeros((400, 256, 256, 3), np.uint8)
    assert refused(tmp_path, npz_bytes(images=images, labels=np.zeros(400))).code == "archive-bomb"


def _header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (_header("{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 9, 9), }\n"),
         "corrupt-archive"),
        (_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-12, 9, 9), }\n"),
         "corrupt-archive"),
        (_header("{'descr': '|u1', 'fortran_order': False, 'shape': (0, -9, 9), }\n"),
         "corrupt-archive"),
        (_header("{'descr': '|u1', 'shape': (12, 9, 9), }\n"), "corrupt-archive"),
        (_header("__import__('os').abort()\n"), "corrupt-archive"),
        (_header("(" * 9000), "corrupt-archive"),
        (_header(" " * 20_000 + "\n", (2, 0)), "corrupt-archive"),
        (_header("{'descr': '|O', 'fortran_order': False, 'shape': (12,), }\n"),
         "array-type-unsupported"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00", "corrupt-archive"),
        (b"no array at all", "corrupt-archive"),
        (b"", "corrupt-archive"),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path: Path, start: bytes, code: str) -> None:
    labels = npy_bytes(drawn()[1])
    assert refused(tmp_path, zipped({"images.npy": start, "labels.npy": labels})).code == code


def test_texts_beyond_unicode_are_refused(tmp_path: Path) -> None:
    images, _ = drawn()
    labels = np.full((N,), 0x110000, ">u4").view(">U1")
    files = {"images.npy": npy_bytes(images), "labels.npy": npy_bytes(labels)}
    assert refused(tmp_path, zipped(files)).code == "corrupt-archive"


def test_a_wrong_checksum_is_found_at_the_last_picture(tmp_path: Path) -> None:
    images, labels = drawn()
    data = bytearray(npz_bytes(compressed=False, images=images, labels=labels))
    place = data.index(images[-1].tobytes()[:64])
    data[place] ^= 1
    error = refused(tmp_path, bytes(data))
    assert error.code == "corrupt-archive"
    assert "checksum" in str(error)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    images, labels = drawn()
    data = npz_bytes(images=images, labels=labels)
    assert refused(tmp_path, data[: len(data) // 2]).code == "corrupt-archive"


def test_an_array_may_be_larger_than_any_image(tmp_path: Path) -> None:
    images, labels = drawn()
    data = npz_bytes(images=images, labels=labels)
    assert len(unpacked(tmp_path, data, IngestLimits(max_entry_bytes=5000)).images) == N


def test_memory_stays_below_the_arrays_size(tmp_path: Path) -> None:
    """An npz in either order and an HDF5 file of 96 MB of pixels, read with 64 MiB to spare."""
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (32, 1000, 1000, 3), np.uint8)
    labels = np.arange(32) % 2
    paths = [tmp_path / name for name in ("c", "f", "h")]
    paths[0].write_bytes(npz_bytes(compressed=False, images=images, labels=labels))
    fortran = np.asfortranarray(images[:, :300, :300])
    paths[1].write_bytes(npz_bytes(compressed=False, images=fortran, labels=labels))
    paths[2].write_bytes(as_hdf5(tmp_path, images=images, labels=labels))
    for path in paths:
        command = [sys.executable, "-c", _LIMITED, str(path), str(tmp_path / f"{path.name}-files")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["32"]


_LIMITED = """
import sys
from pathlib import Path
from jobs.datasets.array_hdf5 import open_hdf5
from jobs.datasets.array_unpack import array_reader, unpack_arrays
from jobs.datasets.confine import limit_memory
from jobs.datasets.limits import IngestLimits
from jobs.datasets.report import Report
import h5py
path, folder, limits = Path(sys.argv[1]), Path(sys.argv[2]), IngestLimits()
folder.mkdir()
limit_memory(64 << 20)
reader = array_reader(path, limits)
reader = open_hdf5 if path.name == "h" else reader  # here, not in its own process
opened = reader(path, limits, folder / "scratch")
print(unpack_arrays(opened, folder, Report(), lambda _: None).files)
"""
