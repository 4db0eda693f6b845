"""Manifests that were asked for lately, parsed: a page of thumbnails asks for one many times."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from jobs.datasets.manifest import Manifest
from models_cache.blobs import BlobStore

_MOST_IMAGES = 200_000  # of all that are kept: about 200 MB


class RecentManifests:
    """The manifests that were used last; they never change, so none is ever out of date.

    Args:
        blobs: Where they are stored.
        most_images: Of all kept ones together; the newest is kept whatever its size.
    """

    def __init__(self, blobs: BlobStore, most_images: int = _MOST_IMAGES) -> None:
        self._blobs = blobs
        self._most_images = most_images
        self._kept: OrderedDict[str, Manifest] = OrderedDict()  # the longest unused first
        self._lock = Lock()

    def get(self, sha256: str) -> Manifest:
        """Return a manifest, as `Manifest.load` does and with its errors."""
        with self._lock:
            manifest = self._kept.pop(sha256, None)
            if manifest is not None:
                self._kept[sha256] = manifest
                return manifest
        manifest = Manifest.load(self._blobs, sha256)
        with self._lock:
            self._kept[sha256] = manifest
            images = sum(len(kept.images) for kept in self._kept.values())
            while images > self._most_images and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                images -= len(gone.images)
        return manifest
