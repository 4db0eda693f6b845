"""Decodes every image once, and decides whether enough of them can be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.datasets.decoding import Decoded, DecoderPool, Undecodable
from jobs.datasets.errors import EmptyDataset, TooManyUnreadable, printable
from jobs.datasets.manifest import LabelledImage
from jobs.datasets.report import Report
from jobs.datasets.spool import PixelSpool
from jobs.progress import ProgressWriter

_MAX_NAMED = 10


class Checker:
    """Decodes images by their hash, so that equal files are decoded once.

    Args:
        decoders: The processes that decode.
        spool: Gets the pixels.
        progress: Told how many images are done.
    """

    def __init__(self, decoders: DecoderPool, spool: PixelSpool, progress: ProgressWriter) -> None:
        self._decoders = decoders
        self._spool = spool
        self._progress = progress
        self.facts: dict[str, dict[str, Any]] = {}  # of each decoded image
        self.failures: dict[str, Undecodable] = {}  # of each other one

    def decode(self, paths: Mapping[str, Path]) -> None:
        """Decode files by their hash; `facts`, `failures` and the spool get the outcomes.

        Raises:
            TooManyPixels: The spool is over its limit.
        """
        hashes = list(paths)
        self._progress.phase("decode")
        for done, outcome in enumerate(self._decoders.decode(list(paths.values())), start=1):
            sha256 = hashes[outcome.index]
            if isinstance(outcome, Decoded):
                self._spool.add(sha256, outcome.pixels)
                self.facts[sha256] = outcome.facts
            else:
                self.failures[sha256] = outcome
            self._progress.progress("images", done, len(hashes))

    def usable(
        self, images: Sequence[LabelledImage], max_unreadable_fraction: float, report: Report
    ) -> list[LabelledImage]:
        """Return the images that could be decoded, with their sizes; report the others.

        Raises:
            TooManyUnreadable: More than one, and more than the given fraction, are unusable.
            EmptyDataset: None is left.
        """
        unreadable = [image for image in images if image.sha256 in self.failures]
        for image in unreadable:
            failure = self.failures[image.sha256]
            report.error(image.path, failure.code, failure.message)
        report.count(images=len(images), unreadable=len(unreadable))
        if len(unreadable) == len(images):
            raise EmptyDataset(len(images))
        if len(unreadable) > max(1, max_unreadable_fraction * len(images)):
            first = [printable(image.path) for image in unreadable[:_MAX_NAMED]]
            raise TooManyUnreadable(len(unreadable), len(images), first)
        return list(self._measured(images))

    def _measured(self, images: Iterable[LabelledImage]) -> Iterable[LabelledImage]:
        for image in images:
            if (fact := self.facts.get(image.sha256)) is not None:
                yield replace(image, width_px=fact["width_px"], height_px=fact["height_px"])
