"""Archives and metadata that are valid, taken apart and put together wrongly: only our errors.

Parts of a file (headers, contents, directory entries, blocks, rows) are dropped, doubled, swapped,
or given numbers of other parts; bytes alone would seldom get past the first check.
`GRAFT_TEST_STRUCTURES` sets how many are tried (`make soak`: 20,000).
"""

from __future__ import annotations

import gzip
import json
import os
import resource
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.datasets.archive import quick_check, read_archive
from jobs.datasets.limits import IngestLimits
from jobs.datasets.metadata import labels_of
from jobs.errors import DatasetError
from tests.abuse import tars, zips
from tests.images import streamed_zip_bytes, zip_bytes

_TRIES = int(os.environ.get("GRAFT_TEST_STRUCTURES", "150"))
_SETTINGS = settings(
    max_examples=_TRIES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_LIMITS = IngestLimits(max_entries=100, max_unpacked_bytes=1 << 20, max_entry_bytes=1 << 19)
_MOST_GROWTH_BYTES = 128 << 20
_BLOCK = 512
_NUMBERS = (0, 1, 29, 30, 46, 512, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)

#: What is done to a list of parts: the kind, two places, and a number.
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "double", "swap", "cut", "number", "splice"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from(_NUMBERS),
    ),
    min_size=1,
    max_size=5,
)
Edits = list[tuple[str, int, int, int]]


def edited(parts: list[bytes], edits: Edits) -> bytes:
    """Return the parts put together after all edits."""
    parts = list(parts)
    for kind, first, second, number in edits:
        if not parts:
            break
        one, other = first % len(parts), second % len(parts)
        if kind == "drop":
            del parts[one]
        elif kind == "double":
            parts.insert(other, parts[one])
        elif kind == "swap":
            parts[one], parts[other] = parts[other], parts[one]
        elif kind == "cut":
            parts[one] = parts[one][: number % (len(parts[one]) + 1)]
        elif kind == "number":
            place = second % max(1, len(parts[one]) - 3)
            changed = number.to_bytes(4, "little")
            parts[one] = parts[one][:place] + changed + parts[one][place + 4 :]
        else:
            parts[one] = parts[one][: second % (len(parts[one]) + 1)] + parts[other]
    return b"".join(parts)


def zip_parts(data: bytes) -> list[bytes]:
    """Split a zip before each of its records."""
    starts = sorted(
        {0, len(data)}
        | {
            place
            for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08")
            for place in range(len(data))
            if data.startswith(mark, place)
        }
    )
    return [data[start:end] for start, end in pairwise(starts)]


def tar_parts(data: bytes) -> list[bytes]:
    """Split a tar into its blocks."""
    return [data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)]


_ZIPS = [
    zip_parts(data)
    for data in (
        zip_bytes(zips.FILES),
        zip_bytes(zips.FILES, zips.DEFLATED),
        streamed_zip_bytes(zips.FILES),
        zips.honest_zip64(),
    )
]
_TARS = [
    tar_parts(data)
    for data in (tars.PLAIN, tars.PLAIN_GNU, tars.pax(tars.record("path", "b/1.jpg")))
]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def judge(path: Path, data: bytes) -> None:
    """Read an archive both ways: only our errors, within the limits, in bounded memory."""
    path.write_bytes(data)
    before = peak_bytes()
    with suppress(DatasetError):
        quick_check(path, _LIMITS)
    with suppress(DatasetError):
        sizes = [sum(map(len, content)) for _, content in read_archive(path, _LIMITS)]
        assert sum(sizes) <= _LIMITS.max_unpacked_bytes
    assert peak_bytes() - before < _MOST_GROWTH_BYTES


@_SETTINGS
@given(parts=st.sampled_from(_ZIPS), edits=_EDITS)
def test_zips_put_together_wrongly(tmp_path: Path, parts: list[bytes], edits: Edits) -> None:
    judge(tmp_path / "upload", edited(parts, edits))


@_SETTINGS
@given(parts=st.sampled_from(_TARS), edits=_EDITS, repaired=st.booleans(), packed=st.booleans())
def test_tars_put_together_wrongly(
    tmp_path: Path, parts: list[bytes], edits: Edits, repaired: bool, packed: bool
) -> None:
    data = edited(parts, edits)
    if repaired and len(data) >= _BLOCK:
        data = tars.checksummed(data[:_BLOCK]) + data[_BLOCK:]
    judge(tmp_path / "upload", gzip.compress(data, mtime=0) if packed else data)


_CELLS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["1.jpg", "2.jpg", "file_name", "label", "labels", "a|b", '"', "\0", "../x"]),
)
_FIELDS = ("file_name", "label", "labels")
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _CELLS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_CELLS, inner, max_size=3)
    ),
    max_leaves=6,
)


@_SETTINGS
@given(
    rows=st.lists(st.lists(_CELLS, max_size=4), max_size=6),
    header=st.lists(st.sampled_from(["file_name", "label", "labels", "x", ""]), max_size=4),
    separator=st.sampled_from([",", ";", "\t"]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_tables_put_together_wrongly(
    rows: list[list[str]], header: list[str], separator: str, end: str, encoding: str
) -> None:
    text = end.join(separator.join(row) for row in [header, *rows])
    with suppress(DatasetError):
        labels_of("metadata.csv", text.encode(encoding, "ignore"), "", {"1.jpg", "2.jpg"}, 100)


@_SETTINGS
@given(
    lines=st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(_FIELDS, _VALUES)),
        max_size=6,
    ),
    edits=_EDITS,
)
def test_json_lines_put_together_wrongly(lines: list[dict[str, object]], edits: Edits) -> None:
    parts = [json.dumps(line).encode() + b"\n" for line in lines]
    data = edited(parts, edits) if parts else b""
    with suppress(DatasetError):
        labels_of("metadata.jsonl", data, "", {"1.jpg", "2.jpg"}, 100)
