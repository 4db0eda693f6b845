"""The ingest child: `python -m jobs.datasets.ingest SPEC.json`. An archive in, a dataset out.

Without torch, under resource limits, with the decoding in even more limited children. Everything
that a result line names is durable before the line is written; a rejected upload leaves a report.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import trail
from jobs.datasets import doctor, findings
from jobs.datasets.appearance import Appearance, appearance_of
from jobs.datasets.array_unpack import array_reader, unpack_arrays
from jobs.datasets.checking import Checker
from jobs.datasets.confine import limit_ingest
from jobs.datasets.corrections import corrected
from jobs.datasets.decoding import DecoderPool
from jobs.datasets.errors import ClassWithoutImages, EmptyDataset, printable
from jobs.datasets.ingest_spec import IngestSpec
from jobs.datasets.labelling import label_images, unlabelled_images
from jobs.datasets.manifest import TRAIN, UNLABELLED, VAL, LabelledImage, Manifest, build_manifest
from jobs.datasets.near_duplicates import near_duplicates
from jobs.datasets.report import Report
from jobs.datasets.split import draw_val
from jobs.datasets.spool import PixelSpool
from jobs.datasets.unpack import Unpacked, unpack
from jobs.errors import DatasetError
from jobs.eta import PhaseEstimate
from jobs.processes import die_with_parent
from jobs.progress import FILE_NAME, ProgressWriter
from models_cache import faults
from models_cache.blobs import BlobStore
from models_cache.decode import Pixels
from models_cache.durable import needing_space
from models_cache.errors import GraftError, InsufficientStorage
from models_cache.pixels import PackedPixels, PixelCache, PixelKey

_MAX_NAMED = 10
_FILE_SLACK_BYTES = 1 << 30  # an index or a manifest above the largest pack


def main(spec_path: str) -> None:
    """Do one ingest and write its last progress line."""
    value = json.loads(Path(spec_path).read_text())
    die_with_parent(value.get("parent_pid"))
    spec = IngestSpec.from_json(value)
    faults.arm(spec.faults, Path(spec.faults_folder))
    progress = ProgressWriter(spec.attempt_folder / FILE_NAME, PhaseEstimate())
    scratch = spec.attempt_folder / "ingest"
    with trail.followed(value):
        try:
            Ingest(spec, progress, scratch).run()
        finally:
            with suppress(FileNotFoundError):
                shutil.rmtree(scratch)


class Ingest:
    """One upload on its way to a dataset.

    Args:
        spec: What is asked for.
        progress: Where the worker reads how far it is.
        scratch: A folder that is not there yet; removed by the owner.
    """

    def __init__(self, spec: IngestSpec, progress: ProgressWriter, scratch: Path) -> None:
        self._spec = spec
        self._progress = progress
        self._scratch = scratch
        self._blobs = BlobStore(spec.data_folder / "blobs")
        self._cache = PixelCache(spec.data_folder / "cache" / "pixels")
        self._report = Report()

    def run(self) -> None:
        """Ingest, and write a result or an error as the last line."""
        try:
            with needing_space("checking the upload"):
                self._run()
        except InsufficientStorage as error:
            # What was unpacked is of no use any more, and the last line needs some bytes
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._progress.error(error)
        except GraftError as error:
            self._progress.error(error)

    def _run(self) -> None:
        try:
            result = self._dataset()
        except DatasetError as error:
            self._report.reject(error)
            self._progress.report(self._report.store(self._blobs).sha256)
            raise
        faults.reach("ingest.before_result")
        self._progress.result({"dataset": result})

    def _dataset(self) -> dict[str, Any]:
        """Tell the story: unpack, label, decode, leave out, split, store, pack."""
        spec, report = self._spec, self._report
        self._scratch.mkdir(mode=0o700)
        parent = self._parent()
        kept = parent.labelled() if parent else []
        parent_pixels = self._cache.open(self._key(parent)) if parent else None
        self._confine(parent)
        spool = PixelSpool(self._scratch / "pixels", spec.limits.max_pixels_bytes)
        with DecoderPool(spec.decode_plan()) as decoders:
            unpacked = self._unpack()
            if spec.unlabelled or (parent is not None and parent.task == UNLABELLED):
                images = unlabelled_images(unpacked)
            else:
                images = label_images(unpacked, kept, spec.limits, report)
            classes = {name for image in (*kept, *images) for name in image.names}
            checker = Checker(decoders, spool, self._progress)
            checker.decode({image.sha256: unpacked.images[image.path].path for image in images})
            images = checker.usable(images, spec.limits.max_unreadable_fraction, report)
            if spec.corrections:
                images, kept = corrected(images, kept)
            if parent is not None and parent_pixels is None:
                self._decode_again(parent, checker)
        faults.reach("ingest.after_decode")
        images = findings.leave_out_placeholders(images, checker.facts, report)
        images = findings.leave_out_duplicates(images, kept, report)
        seen = _appearances([*kept, *images], checker, parent, parent_pixels)
        hashes = list(seen)
        groups = [[hashes[i] for i in group] for group in near_duplicates(list(seen.values()))]
        if classes:  # without labels nothing is held out
            images = self._with_splits(images, kept, groups)
        order = parent.classes if parent else ()
        manifest = self._manifest([*kept, *images], classes, order)
        self._examine(manifest, seen, checker, groups)
        self._store_originals(images, unpacked)
        self._pack(manifest, self._pixels(manifest, spool, parent, parent_pixels))
        return self._result(manifest)

    def _parent(self) -> Manifest | None:
        sha256 = self._spec.parent_manifest_sha256
        return None if sha256 is None else Manifest.load(self._blobs, sha256)

    def _key(self, manifest: Manifest) -> PixelKey:
        return PixelKey(manifest.digest, self._spec.resize_px, self._spec.interpolation)

    def _confine(self, parent: Manifest | None) -> None:
        limits = self._spec.limits
        parent_bytes = self._cache.size_bytes(self._key(parent)) if parent else 0
        limit_ingest(
            memory_bytes=limits.ingest_memory_bytes,
            cpu_seconds=limits.ingest_cpu_seconds,
            file_bytes=limits.max_pixels_bytes + parent_bytes + _FILE_SLACK_BYTES,
        )

    def _unpack(self) -> Unpacked:
        self._progress.phase("unpack")
        self._blobs.verify(self._spec.archive_sha256)
        archive = self._blobs.local_path(self._spec.archive_sha256)
        folder = self._scratch / "files"
        folder.mkdir(mode=0o700)
        limits, report = self._spec.limits, self._report
        open_arrays = array_reader(archive, limits)
        if open_arrays is None:
            unpacked = unpack(archive, folder, limits, report, self._advanced)
        else:
            opened = open_arrays(archive, limits, self._scratch / "array")
            unpacked = unpack_arrays(opened, folder, report, self._advanced)
        self._report.count(files=unpacked.files)
        if not unpacked.images:
            raise EmptyDataset(unpacked.files)
        faults.reach("ingest.after_unpack")
        return unpacked

    def _advanced(self, done_bytes: int) -> None:
        self._progress.progress("bytes", done_bytes, None)

    def _decode_again(self, parent: Manifest, checker: Checker) -> None:
        """Decode the parent's images, whose pack is gone: packs are a cache.

        Raises:
            BlobMissing: An image is gone from the data folder.
            BlobCorrupt: An image's bytes changed on disk.
        """
        hashes = sorted({image.sha256 for image in parent.images} - checker.facts.keys())
        for sha256 in hashes:
            self._blobs.verify(sha256)
        checker.decode({sha256: self._blobs.local_path(sha256) for sha256 in hashes})

    def _with_splits(
        self,
        images: list[LabelledImage],
        kept: Sequence[LabelledImage],
        groups: Sequence[Sequence[str]],
    ) -> list[LabelledImage]:
        """Draw a val split unless there is one; where only `train` is given, out of that."""
        given = {image.split for image in images}
        if VAL in given or (given != {""} and any(image.split == VAL for image in kept)):
            return images
        undecided = [replace(i, split="") if i.split == TRAIN else i for i in images]
        group_of = {sha256: group[0] for group in groups for sha256 in group}
        return draw_val(undecided, kept, self._spec.val_fraction, group_of)

    def _manifest(
        self, images: Sequence[LabelledImage], classes: set[str], order: Sequence[str]
    ) -> Manifest:
        trained = {name for i in images if i.split == TRAIN for name in i.names}
        if missing := sorted(classes - trained):
            raise ClassWithoutImages([printable(name) for name in missing[:_MAX_NAMED]])
        return build_manifest(images, classes, order)

    def _examine(
        self,
        manifest: Manifest,
        appearances: Mapping[str, Appearance],
        checker: Checker,
        groups: Sequence[Sequence[str]],
    ) -> None:
        modes = {sha256: fact["mode"] for sha256, fact in checker.facts.items()}
        for finding in doctor.examine(manifest, appearances, modes, groups):
            self._report.finding(finding)
        for sha256, copies in doctor.copies_of(manifest).items():
            if len({image.split for image in copies}) > 1:
                self._report.leakage(sha256, [(image.split, image.path) for image in copies])

    def _store_originals(self, images: Sequence[LabelledImage], unpacked: Unpacked) -> None:
        self._progress.phase("pack")
        files = {image.sha256: unpacked.images[image.path].path for image in images}
        self._blobs.put_files(files)
        faults.reach("ingest.after_blobs")

    def _pack(self, manifest: Manifest, pixels: Iterator[Pixels]) -> None:
        key = self._key(manifest)
        total = len(manifest.images)
        if self._cache.open(key) is None:
            self._cache.write(key, self._counted(pixels, total))
        self._progress.progress("images", total, total)

    def _counted(self, pixels: Iterator[Pixels], total: int) -> Iterator[Pixels]:
        for done, image in enumerate(pixels):
            yield image
            self._progress.progress("images", done, total)

    def _pixels(
        self,
        manifest: Manifest,
        spool: PixelSpool,
        parent: Manifest | None,
        parent_pixels: PackedPixels | None,
    ) -> Iterator[Pixels]:
        """Yield every image in manifest order, from this upload or from the parent's pack."""
        places = {image.sha256: i for i, image in enumerate(parent.images)} if parent else {}
        for image in manifest.images:
            if image.sha256 in spool:
                yield spool.read(image.sha256)
            else:
                assert parent_pixels is not None, "an image is of the upload or of its parent"
                yield parent_pixels.image(places[image.sha256])

    def _result(self, manifest: Manifest) -> dict[str, Any]:
        report = self._report
        report.count(kept=len(manifest.images), splits=manifest.counts())
        manifest_sha256 = manifest.store(self._blobs).sha256
        report_sha256 = report.store(self._blobs).sha256
        return {
            "manifest_sha256": manifest_sha256,
            "report_sha256": report_sha256,
            "digest": manifest.digest,
            "task": manifest.task,
            "classes": list(manifest.classes),
            "splits": manifest.counts(),
        }


def _appearances(
    images: Sequence[LabelledImage],
    checker: Checker,
    parent: Manifest | None,
    parent_pixels: PackedPixels | None,
) -> dict[str, Appearance]:
    """Return what images look like by their hash, of this upload or from the parent's pack."""
    places = {image.sha256: i for i, image in enumerate(parent.images)} if parent else {}
    found = {}
    for sha256 in sorted({image.sha256 for image in images}):
        if (fact := checker.facts.get(sha256)) is not None:
            found[sha256] = Appearance.from_json(fact["appearance"])
        else:
            assert parent_pixels is not None, "an image is of the upload or of its parent"
            found[sha256] = appearance_of(parent_pixels.image(places[sha256]))
    return found


if __name__ == "__main__":
    main(sys.argv[1])
