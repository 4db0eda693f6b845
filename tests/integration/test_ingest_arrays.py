"""Array files through the real ingest child, its reader and its decoders."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from models_cache.artifacts import MULTILABEL
from models_cache.pixels import PixelKey
from tests.arrays import CLASS_NAMES, drawn, hdf5_bytes, npz_bytes
from tests.integration.test_ingest import Uploads


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def in_hdf5(folder: Path) -> bytes:
    images, labels = drawn()

    def write(file: h5py.File) -> None:
        file.create_dataset("images", data=images, compression="gzip")
        file["labels"] = labels
        file["class_names"] = list(CLASS_NAMES)
        file["notes"] = ["not used"]

    return hdf5_bytes(folder, write)


def in_npz(_folder: Path) -> bytes:
    images, labels = drawn()
    return npz_bytes(images=images, labels=labels, class_names=np.array(CLASS_NAMES))


def test_both_formats_become_the_same_dataset(uploads: Uploads, tmp_path: Path) -> None:
    images, labels = drawn()
    hdf5, npz = (uploads.ingest(pack(tmp_path)) for pack in (in_hdf5, in_npz))
    assert hdf5.dataset["digest"] == npz.dataset["digest"]
    assert npz.dataset["classes"] == list(CLASS_NAMES)
    assert npz.dataset["splits"]["train"]["images"] == 10
    packed = uploads.cache.open(PixelKey(npz.dataset["digest"], 32, "bilinear"))
    assert packed is not None
    for position, entry in enumerate(npz.manifest.images):
        number = int(Path(entry.path).stem)
        assert npz.manifest.classes[entry.labels[0]] == CLASS_NAMES[labels[number]]
        np.testing.assert_array_equal(packed.image(position), images[number])
    assert [item["path"] for item in hdf5.report["ignored"]] == ["notes"]
    assert any(line.get("unit") == "bytes" for line in npz.lines), "no progress was shown"


def test_several_labels_become_the_same_dataset_from_both_formats(
    uploads: Uploads, tmp_path: Path
) -> None:
    images, labels = drawn()
    sets = np.stack([labels == 0, labels == 1, np.arange(len(labels)) % 3 == 0], axis=1)
    names = np.array([b"disc", b"square", b"third"])

    def write(file: h5py.File) -> None:
        file["images"], file["labels"], file["class_names"] = images, sets, names

    npz = uploads.ingest(npz_bytes(images=images, labels=sets.astype(int), class_names=names))
    hdf5 = uploads.ingest(hdf5_bytes(tmp_path, write))
    assert hdf5.dataset["digest"] == npz.dataset["digest"]
    assert npz.manifest.task == MULTILABEL
    for entry in npz.manifest.images:
        found = {npz.manifest.classes[label].encode() for label in entry.labels}
        assert found == set(names[sets[int(Path(entry.path).stem)]])


def test_arrays_may_be_added_to_a_dataset_of_files(uploads: Uploads, tmp_path: Path) -> None:
    first = uploads.ingest(in_npz(tmp_path))
    more, labels = drawn(per_class=9)
    names = np.array(CLASS_NAMES)
    data = npz_bytes(images=more[12:], labels=names[labels[12:]])
    parent = first.dataset["manifest_sha256"]
    second = uploads.ingest(data, parent_manifest_sha256=parent)
    assert len(second.manifest.images) == 18


def test_a_hostile_file_leaves_a_report_and_nothing_else(uploads: Uploads, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"root of all secrets " * 8)

    def write(file: h5py.File) -> None:
        file.create_dataset("images", (12, 1, 10), "u1", external=[(str(secret), 0, 120)])
        file["labels"] = drawn()[1]

    done = uploads.ingest(hdf5_bytes(tmp_path, write))
    assert done.last["code"] == "array-not-plain"
    assert done.codes("errors") == ["array-not-plain"]
    blobs = [path.read_bytes() for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 2  # the upload and the report
    assert not any(b"root of all" in data for data in blobs)
