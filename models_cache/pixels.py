"""Decoded and resized images of one dataset, packed into one file that is mapped read-only.

Decoding is most of the time of a feature pass, so it happens once, at ingest. A pack can always
be made again from the blobs: it is a cache, bounded in bytes, and losing one costs seconds.

File: the pixels of each image in manifest order, then an index of `<Q offset, I height, I width>`
for each image, then a footer with the index's place and the checksums of both. The footer comes
last, so an image can be appended without knowing how many there will be.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from models_cache import durable
from models_cache.decode import Pixels
from models_cache.preprocessing import Interpolation

_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4")])
_FOOTER = struct.Struct("<QQII8s")  # index offset, images, CRC-32 of index and pixels, magic
_MAGIC = b"GRAFTPX2"
_SUFFIX = ".pixels"
_CHANNELS = 3

DECODER_VERSION = 1  # one more whenever the same bytes become other pixels
DECODER = f"pillow{PIL.__version__}.{DECODER_VERSION}"


@dataclass(frozen=True)
class PixelKey:
    """What decides the content of a pack.

    Args:
        dataset_digest: 64 hex digits; fixes the images and their order.
        resize_px: Shorter side.
        interpolation: Kernel of the resize.
        decoder: What decodes and resizes; another one may give other pixels.
    """

    dataset_digest: str
    resize_px: int
    interpolation: Interpolation
    decoder: str = DECODER


class PackedPixels:
    """An open pack; images are views of the mapped file, which is read and checked once here.

    Args:
        path: The pack's file.

    Raises:
        ValueError: The file is no whole pack, or not what was written.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Held while open: eviction skips a pack that someone reads
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._lock = os.dup(file.fileno())
        try:
            self._index, self._pixels = _mapped(self._lock)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._index)

    def image(self, position: int) -> Pixels:
        """Return one image by its place in the manifest: uint8 `[H, W, 3]`, read-only."""
        entry = self._index[position]
        start = int(entry["offset"])
        shape = (int(entry["height"]), int(entry["width"]), _CHANNELS)
        end = start + shape[0] * shape[1] * _CHANNELS
        return self._pixels[start:end].reshape(shape)

    def close(self) -> None:
        """Let eviction have the file; views that were handed out stay valid."""
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # the map holds a copy of the descriptor
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> PackedPixels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            self.close()


class PixelCache:
    """A folder of packs.

    Args:
        root: The folder; made at the first `write`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path_of(self, key: PixelKey) -> Path:
        """Return where the pack is or would be."""
        parts = (key.dataset_digest, str(key.resize_px), key.interpolation, key.decoder)
        return self._root / f"{'-'.join(parts)}{_SUFFIX}"

    def size_bytes(self, key: PixelKey) -> int:
        """Return the size of a pack's file, 0 if there is none."""
        try:
            return self.path_of(key).stat().st_size
        except FileNotFoundError:
            return 0

    def write(self, key: PixelKey, images: Iterable[Pixels]) -> None:
        """Write a pack durably and atomically; an existing one is replaced.

        Args:
            key: What it holds.
            images: uint8 `[H, W, 3]` each, in manifest order; read one at a time.
        """
        index: list[tuple[int, int, int]] = []
        offset = crc = 0
        with durable.writing(self.path_of(key), point="pixels") as file:
            for pixels in images:
                data = np.ascontiguousarray(pixels).data
                file.write(data)
                crc = zlib.crc32(data, crc)
                index.append((offset, pixels.shape[0], pixels.shape[1]))
                offset += pixels.nbytes
            table = np.array(index, dtype=_INDEX_ENTRY).tobytes()
            file.write(table)
            file.write(_FOOTER.pack(offset, len(index), zlib.crc32(table), crc, _MAGIC))

    def open(self, key: PixelKey) -> PackedPixels | None:
        """Return the pack, or None if there is none: then it is made again. A damaged one goes."""
        path = self.path_of(key)
        try:
            inode = path.stat().st_ino
            packed = PackedPixels(path)
            os.utime(path)  # eviction takes the one that was unused for longest
        except (FileNotFoundError, BlockingIOError):
            return None
        except ValueError:
            _remove_unused(path, inode)  # but not what another process put in its place
            return None
        return packed

    def evict(self, limit_bytes: int) -> int:
        """Remove the longest unused packs until the rest fits; packs in use stay.

        Returns:
            How many bytes were freed.
        """
        packs = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self._packs())
        excess_bytes = sum(size_bytes for _, size_bytes, _ in packs) - limit_bytes
        freed_bytes = 0
        for _, size_bytes, path in packs:
            if freed_bytes >= excess_bytes:
                break
            if _remove_unused(path):
                freed_bytes += size_bytes
        return freed_bytes

    def _packs(self) -> list[Path]:
        return list(self._root.glob(f"*{_SUFFIX}")) if self._root.is_dir() else []


def _mapped(descriptor: int) -> tuple[np.ndarray, Pixels]:
    """Map a pack and return its index and its pixels as one flat array."""
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes < _FOOTER.size:
        raise ValueError("too short for a footer")
    whole = np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype=np.uint8)
    offset, images, index_crc, pixels_crc, magic = _FOOTER.unpack(whole[-_FOOTER.size :].tobytes())
    if magic != _MAGIC or offset + images * _INDEX_ENTRY.itemsize + _FOOTER.size != size_bytes:
        raise ValueError("its footer is damaged")
    table = whole[offset : -_FOOTER.size].tobytes()
    if zlib.crc32(table) != index_crc:
        raise ValueError("its index is damaged")
    pixels = whole[:offset]
    if zlib.crc32(pixels.data) != pixels_crc:
        raise ValueError("its pixels are damaged")
    return np.frombuffer(table, dtype=_INDEX_ENTRY), pixels


def _remove_unused(path: Path, inode: int | None = None) -> bool:
    """Remove a pack unless someone holds its lock, or it is another file than the expected one."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if inode not in (None, os.fstat(file.fileno()).st_ino):
                return False
            path.unlink()
    except (FileNotFoundError, BlockingIOError):
        return False
    return True
