from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.datasets.ingest_spec import IngestSpec
from jobs.datasets.manifest import Manifest
from jobs.progress import FILE_NAME, read_progress
from models_cache.blobs import BlobStore
from models_cache.decode import decode_rgb, resize_shorter_side
from models_cache.pixels import PixelCache, PixelKey
from tests.images import (
    class_folders,
    encode,
    shape_bytes,
    split_folders,
    tar_bytes,
    zip_bytes,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 60


@dataclass
class Done:
    """What one ingest child left behind."""

    lines: list[dict[str, Any]]
    status: int
    blobs: BlobStore

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def dataset(self) -> dict[str, Any]:
        assert self.last["kind"] == "result", self.last
        dataset: dict[str, Any] = self.last["dataset"]
        return dataset

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.blobs, self.dataset["manifest_sha256"])

    @property
    def report(self) -> dict[str, Any]:
        told = [line["report_sha256"] for line in self.lines if line["kind"] == "report"]
        sha256 = told[0] if told else self.dataset["report_sha256"]
        report: dict[str, Any] = json.loads(self.blobs.read(sha256))
        return report

    def codes(self, name: str) -> list[str]:
        return [problem["code"] for problem in self.report[name]]


class Uploads:
    """A data folder, and ingests into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root / "blobs")
        self.cache = PixelCache(root / "cache" / "pixels")
        self._attempts = 0

    def spec(self, archive: bytes | Path, **fields: Any) -> Path:  # noqa: ANN401 - JSON
        self._attempts += 1
        folder = self.root / "runs" / "job" / str(self._attempts)
        folder.mkdir(parents=True)
        data = archive.read_bytes() if isinstance(archive, Path) else archive
        value = {
            "kind": "ingest",
            "job_id": "job",
            "attempt_folder": str(folder),
            "data_folder": str(self.root),
            "archive_sha256": self.blobs.put_bytes(data).sha256,
            "parent_manifest_sha256": None,
            "limits": {},
            "resize_px": 32,
            "interpolation": "bilinear",
            "faults": "",
            "faults_folder": str(folder / "faults"),
            "parent_pid": os.getpid(),
            **fields,
        }
        path = folder / "spec.json"
        path.write_text(json.dumps(value))
        return path

    def start(self, spec: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "jobs.datasets.ingest", str(spec)]
        return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)

    def ingest(self, archive: bytes | Path, **fields: Any) -> Done:  # noqa: ANN401 - JSON
        spec = self.spec(archive, **fields)
        status = self.start(spec).wait(TIMEOUT_SECONDS)
        lines, _ = read_progress(spec.parent / FILE_NAME, 0)
        if status == 0:
            assert not (spec.parent / "ingest").exists(), "scratch files were left"
        return Done(lines, status, self.blobs)


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def test_class_folders_become_a_dataset(uploads: Uploads) -> None:
    files = class_folders(per_class=5)
    done = uploads.ingest(zip_bytes({"wrap/" + name: data for name, data in files.items()}))
    assert done.status == 0
    assert done.dataset["classes"] == ["disc", "square"]
    per_class = {"disc": 4, "square": 4}
    assert done.dataset["splits"]["train"] == {"images": 8, "per_class": per_class}
    assert done.dataset["splits"]["val"]["images"] == 2
    assert done.dataset["digest"] == done.manifest.digest
    assert [line["phase"] for line in done.lines if line["kind"] == "phase"] == [
        "unpack",
        "decode",
        "pack",
    ]
    assert {uploads.blobs.read(image.sha256) for image in done.manifest.images} == set(
        files.values()
    )
    assert done.report["errors"] == done.report["warnings"] == []


def test_packed_pixels_are_those_of_the_one_decode_in_manifest_order(uploads: Uploads) -> None:
    manifest = uploads.ingest(zip_bytes(split_folders())).manifest
    packed = uploads.cache.open(PixelKey(manifest.digest, 32, "bilinear"))
    assert packed is not None
    assert len(packed) == len(manifest.images)
    for position, image in enumerate(manifest.images):
        pixels = decode_rgb(uploads.blobs.read(image.sha256))
        assert pixels.shape == (image.height, image.width, 3)
        expected = resize_shorter_side(pixels, 32, "bilinear")
        np.testing.assert_array_equal(packed.image(position), expected)


def test_every_archive_of_the_same_images_is_the_same_dataset(uploads: Uploads) -> None:
    files = class_folders(("square", "disc", "cross"), per_class=4)
    backwards = dict(reversed(files.items()))
    archives = [
        zip_bytes(files),
        zip_bytes(backwards, zipfile.ZIP_DEFLATED),
        tar_bytes(backwards),
        tar_bytes({"top/" + name: data for name, data in files.items()}, "w:gz"),
    ]
    assert len({uploads.ingest(archive).dataset["digest"] for archive in archives}) == 1


def test_metadata_labels_images(uploads: Uploads) -> None:
    files = {f"{i}.jpg": shape_bytes("disc", i) for i in range(6)}
    rows = "".join(f"{i}.jpg,{'even' if i % 2 == 0 else 'odd'}\n" for i in range(5))
    done = uploads.ingest(zip_bytes({**files, "metadata.csv": f"file_name,label\n{rows}".encode()}))
    assert done.dataset["classes"] == ["even", "odd"]
    assert done.report["ignored"] == [{"path": "5.jpg", "reason": "not-in-metadata"}]


def test_one_unreadable_image_among_many_is_skipped_and_named(uploads: Uploads) -> None:
    files = {**class_folders(per_class=5), "disc/broken.jpg": b"\xff\xd8\xff\xe0 no more"}
    done = uploads.ingest(zip_bytes(files))
    assert sum(split["images"] for split in done.dataset["splits"].values()) == 10
    assert [(e["path"], e["code"]) for e in done.report["errors"]] == [
        ("disc/broken.jpg", "unreadable-image")
    ]


def test_too_many_unreadable_images_reject_the_upload_with_a_report(uploads: Uploads) -> None:
    broken = {f"disc/b{i}.jpg": b"<html>not found</html>" for i in range(3)}
    done = uploads.ingest(zip_bytes({**class_folders(per_class=8), **broken}))
    assert done.status == 0
    assert done.last["code"] == "too-many-unreadable"
    assert done.last["facts"]["unreadable"] == 3
    assert done.last["facts"]["total"] == 19
    assert done.codes("errors") == ["too-many-unreadable"] + ["unreadable-image"] * 3


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (class_folders(("disc",)), "need-two-classes"),
        ({**class_folders(), "disc/more/1.jpg": shape_bytes("disc", 77)}, "ambiguous-layout"),
        ({**class_folders(), "Disc/1.jpg": shape_bytes("disc", 77)}, "class-collision"),
        ({**class_folders(), "aux/1.jpg": shape_bytes("disc", 77)}, "reserved-class-name"),
        ({"a/inner.zip": zip_bytes(class_folders()), "b/x.tar.gz": b"\x1f\x8b"}, "empty-dataset"),
        (
            {**split_folders(), "val/cross/1.jpg": shape_bytes("cross", 7)},
            "class-without-images",
        ),
        ({"metadata.csv": b"file_name,label\n9.jpg,a\n", "1.jpg": b"x"}, "invalid-metadata"),
        ({"../../escape.jpg": b"x", **class_folders()}, "path-traversal"),
    ],
)
def test_unusable_uploads_are_rejected_with_a_report(
    uploads: Uploads, files: Mapping[str, bytes], code: str
) -> None:
    before = set(uploads.root.rglob("*"))
    done = uploads.ingest(zip_bytes(files))
    assert done.status == 0
    assert done.last["code"] == code
    assert done.codes("errors")[0] == code
    left = {path.name for path in set(uploads.root.rglob("*")) - before if path.is_file()}
    # the archive itself, the report and the attempt's own two files
    assert len(left) == 4
    assert {"spec.json", FILE_NAME} <= left


def test_no_content_of_a_damaged_archive_is_kept(uploads: Uploads) -> None:
    data = bytearray(zip_bytes(class_folders()))
    position = data.index(b"square/004.jpg") + 100
    data[position] ^= 0xFF
    done = uploads.ingest(bytes(data))
    assert done.last["code"] == "corrupt-archive"
    assert done.last["facts"]["entry"] == "square/004.jpg"
    assert len([path for path in (uploads.root / "blobs").rglob("*") if path.is_file()]) == 2


def test_files_that_are_no_images_are_ignored_and_listed(uploads: Uploads) -> None:
    extra = {"__MACOSX/disc/._1.jpg": b"x", ".DS_Store": b"x", "readme.txt": b"hello"}
    bare = {"disc/no_suffix": shape_bytes("disc", 900)}
    done = uploads.ingest(zip_bytes({**class_folders(), **extra, **bare}))
    assert {(i["path"], i["reason"]) for i in done.report["ignored"]} == {
        ("__MACOSX/disc/._1.jpg", "system-file"),
        (".DS_Store", "system-file"),
        ("readme.txt", "not-an-image"),
    }
    assert "disc/no_suffix" in {image.path for image in done.manifest.images}


def test_duplicates_leakage_and_conflicts_are_told(uploads: Uploads) -> None:
    files = split_folders(train=6, val=4)
    files["train/disc/copy.jpg"] = files["train/disc/000.jpg"]
    files["val/disc/leak.jpg"] = files["train/disc/001.jpg"]
    files["train/square/wrong.jpg"] = files["train/disc/002.jpg"]
    done = uploads.ingest(zip_bytes(files))
    report = done.report
    assert [(d["path"], d["duplicate_of"]) for d in report["duplicates"]] == [
        ("train/disc/copy.jpg", "train/disc/000.jpg")
    ]
    assert [image["split"] for image in report["leakage"][0]["images"]] == ["train", "val"]
    assert done.codes("findings")[:2] == ["leakage", "conflicting-labels"]
    wrong = report["findings"][1]["items"][0]["images"]
    assert [image["path"] for image in wrong] == ["train/disc/002.jpg", "train/square/wrong.jpg"]
    assert {image["id"] for image in wrong} <= {image.id for image in done.manifest.images}
    assert len(done.manifest.images) == 22


def test_a_class_with_one_image_is_told(uploads: Uploads) -> None:
    files = {**class_folders(per_class=5), "cross/1.jpg": shape_bytes("cross")}
    done = uploads.ingest(zip_bytes(files))
    assert "class-too-small-for-val" in done.codes("findings")
    assert done.dataset["splits"]["train"]["per_class"]["cross"] == 1


def placeholder() -> bytes:
    pixels = np.full((60, 60, 3), 247, np.uint8)
    pixels[20:30, 10:50] = (63, 63, 65)
    return encode(pixels, "GIF")


def test_a_placeholder_among_photographs_is_left_out_and_named(uploads: Uploads) -> None:
    gifs = {"disc/not_found.gif": placeholder(), "disc/real.gif": shape_bytes("disc", 800, "GIF")}
    done = uploads.ingest(zip_bytes({**class_folders(per_class=20), **gifs}))
    assert done.report["ignored"] == [{"path": "disc/not_found.gif", "reason": "placeholder"}]
    assert sorted(done.codes("warnings")) == ["odd-format", "placeholder-image"]
    assert "disc/real.gif" in {image.path for image in done.manifest.images}


def test_flat_drawings_lose_nothing(uploads: Uploads) -> None:
    files = class_folders(per_class=10)
    for number in range(12):
        pixels = np.full((40, 40, 3), 255, np.uint8)
        pixels[number : number + 9, 3:20] = (200, number, 0)
        files[f"drawing/{number}.gif"] = encode(pixels, "GIF")
    done = uploads.ingest(zip_bytes(files))
    assert len(done.manifest.images) == 32


def test_a_new_version_keeps_the_images_and_splits_of_its_parent(uploads: Uploads) -> None:
    first = uploads.ingest(zip_bytes(class_folders(per_class=10)))
    new = class_folders(("square", "cross"), per_class=10, first_seed=5000)
    old = {"square/again.jpg": class_folders(per_class=10)["square/003.jpg"]}
    second = uploads.ingest(
        zip_bytes({**new, **old}), parent_manifest_sha256=first.dataset["manifest_sha256"]
    )
    assert second.dataset["classes"] == ["disc", "square", "cross"]  # a class keeps its index
    assert {image.id for image in first.manifest.images} <= {i.id for i in second.manifest.images}
    assert second.dataset["splits"]["val"]["per_class"] == {"cross": 2, "disc": 2, "square": 4}
    assert second.report["counts"]["duplicates"] == 1
    packed = uploads.cache.open(PixelKey(second.manifest.digest, 32, "bilinear"))
    assert packed is not None
    for position, image in enumerate(second.manifest.images):
        pixels = decode_rgb(uploads.blobs.read(image.sha256))
        expected = resize_shorter_side(pixels, 32, "bilinear")
        np.testing.assert_array_equal(packed.image(position), expected)


def test_a_new_version_does_not_need_its_parents_pack(uploads: Uploads) -> None:
    first = uploads.ingest(zip_bytes(class_folders()))
    uploads.cache.evict(0)
    second = uploads.ingest(
        zip_bytes(class_folders(("disc",), first_seed=5000)),
        parent_manifest_sha256=first.dataset["manifest_sha256"],
    )
    assert len(second.manifest.images) == 15
    assert uploads.cache.open(PixelKey(second.manifest.digest, 32, "bilinear")) is not None


def test_a_decoder_crash_costs_one_image(uploads: Uploads) -> None:
    archive = zip_bytes(class_folders(per_class=15))
    done = uploads.ingest(archive, faults="decoder.image:3=kill")
    assert done.codes("errors") == ["decoder-crash"]
    assert len(done.manifest.images) == 29


def test_a_decode_that_hangs_costs_one_image(uploads: Uploads) -> None:
    archive = zip_bytes(class_folders(per_class=15))
    limits = {"decode_wall_seconds": 2.0}
    done = uploads.ingest(archive, faults="decoder.image:5=pause", limits=limits)
    assert done.codes("errors") == ["decode-timeout"]
    assert len(done.manifest.images) == 29


def test_a_decode_that_computes_for_long_is_ended(uploads: Uploads) -> None:
    """A few kilobytes of a progressive JPEG that refines all its pixels a thousand times."""
    flat = encode(np.full((3000, 3000, 3), 90, np.uint8), "JPEG", progressive=True)
    last_scan = flat[flat.rindex(b"\xff\xda") : -2]
    slow = flat[:-2] + last_scan * 1000 + flat[-2:]
    limits = {"decode_cpu_seconds": 1}
    files = {**class_folders(per_class=15), "disc/slow.jpg": slow}
    done = uploads.ingest(zip_bytes(files), limits=limits)
    assert done.codes("errors") == ["decode-timeout"]
    assert len(done.manifest.images) == 30


def test_a_decode_that_needs_much_memory_costs_one_image(uploads: Uploads) -> None:
    large = encode(np.zeros((6000, 6000, 3), np.uint8), "PNG")
    limits = {"decoder_memory_bytes": 100 << 20}
    files = {**class_folders(per_class=15), "disc/large.png": large}
    done = uploads.ingest(zip_bytes(files), limits=limits)
    assert done.codes("errors") == ["decode-memory"]
    assert len(done.manifest.images) == 30


@pytest.mark.parametrize(
    "point",
    [
        "ingest.after_unpack",
        "ingest.after_decode",
        "blob.before_fsync",
        "blob.before_rename",
        "pixels.before_fsync",
        "ingest.before_result",
    ],
)
def test_a_full_disk_is_an_error_and_not_a_crash(uploads: Uploads, point: str) -> None:
    archive = zip_bytes(class_folders())
    done = uploads.ingest(archive, faults=f"{point}=enospc")
    assert done.status == 0
    assert (done.last["kind"], done.last["code"]) == ("error", "insufficient-storage")
    assert len(uploads.ingest(archive).manifest.images) == 10


@pytest.mark.parametrize("point", ["blob.before_fsync", "blob.before_rename"])
def test_a_full_disk_while_a_rejection_is_reported_is_told(uploads: Uploads, point: str) -> None:
    done = uploads.ingest(zip_bytes(class_folders(("disc",))), faults=f"{point}=enospc")
    assert done.status == 0
    assert (done.last["kind"], done.last["code"]) == ("error", "insufficient-storage")


def test_the_icon_of_a_folder_is_a_system_file(uploads: Uploads) -> None:
    done = uploads.ingest(zip_bytes({**class_folders(), "disc/Icon\r": b"x"}))
    assert done.report["ignored"] == [{"path": "disc/Icon\\r", "reason": "system-file"}]


def test_a_list_of_names_that_begins_like_a_bitmap_is_ignored(uploads: Uploads) -> None:
    done = uploads.ingest(zip_bytes({**class_folders(), "classes.txt": b"BMW 320\nAudi A4\n"}))
    assert done.report["ignored"] == [{"path": "classes.txt", "reason": "not-an-image"}]


@pytest.mark.parametrize(
    "point",
    [
        "ingest.after_unpack",
        "ingest.after_decode",
        "ingest.after_blobs",
        "pixels.before_rename",
        "ingest.before_result",
    ],
)
def test_a_killed_ingest_has_no_result_and_can_be_done_again(uploads: Uploads, point: str) -> None:
    archive = zip_bytes(class_folders())
    killed = uploads.ingest(archive, faults=f"{point}=kill")
    assert killed.status == -signal.SIGKILL
    assert killed.last["kind"] not in {"result", "error"}
    again = uploads.ingest(archive)
    assert len(again.manifest.images) == 10
    assert uploads.cache.open(PixelKey(again.manifest.digest, 32, "bilinear")) is not None


def test_no_decoder_outlives_a_killed_ingest(uploads: Uploads) -> None:
    spec = uploads.spec(zip_bytes(class_folders()), faults="decoder.image:2=pause")
    process = uploads.start(spec)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (spec.parent / "faults" / "decoder.image-2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 2
    while session_members(process.pid):
        assert time.monotonic() < deadline, "a decoder is still there"
        time.sleep(0.01)


def session_members(session: int) -> list[int]:
    """Return the processes of a session that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_spec_without_options_has_defaults(tmp_path: Path) -> None:
    value = {"attempt_folder": "a", "data_folder": "d", "archive_sha256": "0" * 64}
    spec = IngestSpec.from_json(value)
    assert (spec.resize_px, spec.interpolation, spec.val_fraction) == (256, "bilinear", 0.2)


@pytest.mark.shared
def test_hymenoptera_becomes_a_dataset_without_its_placeholder(
    uploads: Uploads, shared: Path
) -> None:
    done = uploads.ingest(shared / "data" / "hymenoptera.zip", resize_px=256)
    assert done.dataset["classes"] == ["ants", "bees"]
    assert done.dataset["splits"]["train"]["images"] == 244
    assert done.dataset["splits"]["val"]["images"] == 153
    assert done.report["ignored"] == [
        {"path": "train/ants/imageNotFound.gif", "reason": "placeholder"}
    ]
