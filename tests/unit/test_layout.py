from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping
from typing import Literal

import pytest

from jobs.datasets.class_names import check_classes, class_name
from jobs.datasets.errors import InvalidMetadata, printable
from jobs.datasets.layout import Label, Layout, find_layout, is_image_name, is_junk
from jobs.errors import DatasetError

Form = Literal["NFC", "NFD"]


def layout(*images: str, metadata: Mapping[str, bytes] | None = None) -> Layout:
    metadata = metadata or {}
    return find_layout(set(images), sorted(metadata), metadata.__getitem__, 1000)


def code_of(*images: str, metadata: Mapping[str, bytes] | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        layout(*images, metadata=metadata)
    return caught.value.code


def problems_of(metadata: bytes, name: str = "metadata.csv") -> list[tuple[int, str]]:
    with pytest.raises(InvalidMetadata) as caught:
        layout("1.jpg", "2.jpg", metadata={name: metadata})
    assert caught.value.total == len(caught.value.problems)
    return [(problem["row"], problem["code"]) for problem in caught.value.problems]


def test_class_folders_are_labels() -> None:
    assert layout("ants/1.jpg", "bees/2.jpg").labels == {
        "ants/1.jpg": Label("", "ants"),
        "bees/2.jpg": Label("", "bees"),
    }


@pytest.mark.parametrize("folder", ["val", "valid", "validation", "Val"])
def test_split_folders_are_splits(folder: str) -> None:
    found = layout("train/ants/1.jpg", f"{folder}/ants/2.jpg", "test/bees/3.jpg").labels
    assert [label.split for label in found.values()].count("val") == 1
    assert found["test/bees/3.jpg"] == Label("test", "bees")


@pytest.mark.parametrize("wrap", ["data/", "my set/", "train/", "test/"])
def test_one_wrapping_folder_is_seen_through(wrap: str) -> None:
    found = layout(f"{wrap}train/ants/1.jpg", f"{wrap}val/ants/2.jpg")
    assert set(found.labels.values()) == {Label("train", "ants"), Label("val", "ants")}


def test_wrapped_class_folders_are_labels() -> None:
    found = layout("data/ants/1.jpg", "data/bees/2.jpg").labels
    assert set(found.values()) == {Label("", "ants"), Label("", "bees")}


def test_a_class_may_be_called_train() -> None:
    found = layout("train/1.jpg", "bus/2.jpg").labels
    assert set(found.values()) == {Label("", "train"), Label("", "bus")}


@pytest.mark.parametrize(
    "images",
    [
        ("ants/1.jpg", "bees/more/2.jpg"),
        ("ants/1.jpg", "2.jpg"),
        ("1.jpg", "2.jpg"),
        ("train/1.jpg", "val/2.jpg"),
        ("data/x/ants/1.jpg", "data/x/bees/2.jpg"),
        ("train/ants/1.jpg", "bees/2.jpg"),
        ("val/ants/1.jpg", "val/bees/1.jpg"),
        ("train/ants/1.jpg", "val/ants/2.jpg", "valid/ants/3.jpg"),
        ("Train/ants/1.jpg", "train/ants/2.jpg"),
    ],
)
def test_other_layouts_are_ambiguous(images: tuple[str, ...]) -> None:
    assert code_of(*images) == "ambiguous-layout"


@pytest.mark.parametrize(
    "path",
    [
        "a/Icon\r",
        "__MACOSX/a/._1.jpg",
        "a/.DS_Store",
        "a/Thumbs.db",
        ".git/x.png",
        "a/._1.jpg",
        "Desktop.ini",
    ],
)
def test_system_files_are_junk(path: str) -> None:
    assert is_junk(path)


def test_image_names_are_told_by_their_suffix_in_any_case() -> None:
    assert all(map(is_image_name, ["a/1.JPG", "a/b.Tiff", "a/.x.webp", "a/1.heic"]))
    assert not any(map(is_image_name, ["a/readme.txt", "a/jpg", "a.jpg/x", "a/1.jpeg.exe"]))


def test_csv_metadata_labels_images() -> None:
    data = b'\xef\xbb\xbffile_name,size,label\r\n1.jpg,3,ants\r\nsub/2.jpg,4,"bees, wild"\r\n'
    found = layout("1.jpg", "sub/2.jpg", "3.jpg", metadata={"metadata.csv": data})
    assert found.labels == {"1.jpg": Label("", "ants"), "sub/2.jpg": Label("", "bees, wild")}
    assert list(found.unlabelled) == ["3.jpg"]


def test_csv_with_carriage_returns_alone_is_read() -> None:
    data = b"file_name,label\r1.jpg,a\r2.jpg,b\r"
    assert len(layout("1.jpg", "2.jpg", metadata={"metadata.csv": data}).labels) == 2


def test_jsonl_metadata_labels_images_in_splits() -> None:
    lines = b'{"file_name": "1.jpg", "label": "a"}\n\n{"file_name": "./2.jpg", "label": 7}\n'
    files = {"d/train/metadata.jsonl": lines, "d/val/metadata.jsonl": lines}
    images = [f"d/{split}/{n}.jpg" for split in ("train", "val") for n in (1, 2)]
    found = layout(*images, metadata=files).labels
    assert found["d/train/1.jpg"] == Label("train", "a")
    assert found["d/val/2.jpg"] == Label("val", "7")


def test_metadata_at_the_top_may_name_files_in_splits() -> None:
    data = b"file_name,label\ntrain/1.jpg,a\ntest/2.jpg,b\n"
    found = layout("train/1.jpg", "test/2.jpg", metadata={"metadata.csv": data}).labels
    assert found == {"train/1.jpg": Label("train", "a"), "test/2.jpg": Label("test", "b")}


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("missing.jpg,a", "missing-file"),
        ("1.jpg,a", "duplicate-row"),
        ("1.jpg,other", "duplicate-row"),
        ("../../etc/passwd,a", "path-traversal"),
        ("/etc/passwd,a", "absolute-path"),
        ("https://example.org/1.jpg,a", "url-not-supported"),
        ("2.jpg,", "invalid-class-name"),
        ("2.jpg,   ", "invalid-class-name"),
        ("2.jpg,a\x07b", "invalid-class-name"),
        (f"2.jpg,{'x' * 1000}", "invalid-class-name"),
        ("2.jpg,nul", "reserved-class-name"),
        ("2.jpg,a,b", "wrong-field-count"),
        ("2.jpg", "wrong-field-count"),
    ],
)
def test_bad_rows_are_told_with_their_number(row: str, code: str) -> None:
    assert problems_of(f"file_name,label\n1.jpg,a\n{row}\n".encode()) == [(3, code)]


def test_all_bad_rows_are_told_at_once_and_counted() -> None:
    rows = "".join(f"missing{i}.jpg,a\n" for i in range(150))
    with pytest.raises(InvalidMetadata) as caught:
        layout("1.jpg", metadata={"metadata.csv": f"file_name,label\n{rows}".encode()})
    assert caught.value.total == 150
    assert len(caught.value.problems) == 100


@pytest.mark.parametrize(
    ("data", "row", "code"),
    [
        ("file_name,label\n1.jpg,a\n".encode("utf-16"), 1, "not-utf-8"),
        (b"file_name,label\n1.jpg,caf\xe9\n", 2, "not-utf-8"),
        (b'file_name,label\n1.jpg,"a\n', 2, "malformed-csv"),
        (b"file_name;label\n1.jpg;a\n", 1, "missing-column"),
        (b"", 1, "missing-column"),
        (b"file_name,label\n1.jpg," + b"x" * 200_000, 2, "malformed-csv"),
    ],
)
def test_malformed_csv_is_told_with_its_line(data: bytes, row: int, code: str) -> None:
    assert (row, code) in problems_of(data)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"label": "a"}',
        b"[" * 100_000,
        b'{"file_name": 3, "label": "a"}',
        b'{"file_name": "1.jpg", "label": null}',
        b'{"file_name": "1.jpg", "label": true}',
    ],
)
def test_malformed_json_lines_are_told(line: bytes) -> None:
    assert problems_of(line, "metadata.jsonl")[0][0] == 1


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_metadata_finds_images_in_any_unicode_form(form: Form, other: Form) -> None:
    image = unicodedata.normalize(form, "é/müller.jpg")
    name = unicodedata.normalize(other, "é/müller.jpg")
    data = f"file_name,label\n{name},a\n".encode()
    assert layout(image, metadata={"metadata.csv": data}).labels == {image: Label("", "a")}


def test_metadata_that_fits_two_images_in_other_forms_is_refused() -> None:
    images = [f"{a}{b}.jpg" for a, b in (("\u00e9", "\u00e9"), ("e\u0301", "e\u0301"))]
    data = "file_name,label\n\u00e9e\u0301.jpg,a\n".encode()
    with pytest.raises(InvalidMetadata) as caught:
        layout(*images, metadata={"metadata.csv": data})
    assert [problem["code"] for problem in caught.value.problems] == ["ambiguous-file-name"]
    exact = f"file_name,label\n{images[0]},a\n{images[1]},b\n".encode()
    assert len(layout(*images, metadata={"metadata.csv": exact}).labels) == 2


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("metadata.csv", b"1.jpg\n"),
        ("metadata.csv", b"\n"),
        ("metadata.csv", b"9.jpg,a\n"),
        ("metadata.jsonl", b"{\n"),
        ("metadata.jsonl", b"[]\n"),
        ("metadata.jsonl", b'{"file_name": "9.jpg", "label": "a"}\n'),
    ],
)
def test_rows_of_any_kind_are_bounded(name: str, row: bytes) -> None:
    """`layout` allows 1000 rows; the one behind them is told, the others are not looked at."""
    data = b"file_name,label\n" * name.endswith(".csv") + row * 5000
    with pytest.raises(InvalidMetadata) as caught:
        layout("1.jpg", metadata={name: data})
    assert caught.value.total <= 1001
    if row == b"\n":
        assert [problem["row"] for problem in caught.value.problems] == [1001]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n \n"])
def test_as_many_rows_as_are_allowed_are_read(ending: bytes) -> None:
    lines = [f'{{"file_name": "{i}.jpg", "label": "a"}}'.encode() for i in range(1000)]
    images = [f"{i}.jpg" for i in range(1000)]
    found = layout(*images, metadata={"metadata.jsonl": b"\n".join(lines) + ending})
    assert len(found.labels) == 1000


def test_two_metadata_files_in_one_folder_are_ambiguous() -> None:
    data = {"metadata.csv": b"file_name,label\n1.jpg,a\n", "metadata.jsonl": b""}
    assert code_of("1.jpg", metadata=data) == "ambiguous-layout"


@pytest.mark.parametrize(
    "name",
    [
        "=HYPERLINK(1)",
        "+cmd|x",
        "@SUM",
        "🐜",
        "نملة",
        "👩\u200d🔬",
        "__proto__",
        "None",
        "nan",
        "1e5",
    ],
)
def test_class_names_are_kept_exactly(name: str) -> None:
    assert class_name(name) == name


@pytest.mark.parametrize("name", ["01", "1", "a:b", "<>|?*", "console", "constructor", " a"])
def test_class_names_that_look_special_are_kept_exactly(name: str) -> None:
    assert class_name(name) == name


def test_class_names_are_in_nfc() -> None:
    assert class_name("cafe\u0301") == "caf\u00e9"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "invalid-class-name"),
        (" \t", "invalid-class-name"),
        ("\u00ad\ufe0f", "invalid-class-name"),
        ("a\nb", "invalid-class-name"),
        ("a\0b", "invalid-class-name"),
        ("a\u202eb", "invalid-class-name"),
        ("\ud800", "invalid-class-name"),
        ("x" * 256, "invalid-class-name"),
        ("CON", "reserved-class-name"),
        ("lpt1.photos", "reserved-class-name"),
    ],
)
def test_odd_class_names_are_refused(name: str, code: str) -> None:
    with pytest.raises(DatasetError) as caught:
        class_name(name)
    assert caught.value.code == code
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Cat", "cat"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat.", "cat"),
        ("cat ", "cat"),
        ("ß", "SS"),
        ("cat\u00ad", "cat"),
        ("cat\u200c", "cat"),
        ("c\ufe0fat", "cat"),
        ("cat\u3164", "cat"),
        ("cat\U000e0061", "cat"),
        ("cafe\u200d\u0301", "caf\u00e9"),
    ],
)
def test_names_that_look_the_same_collide(first: str, second: str) -> None:
    with pytest.raises(DatasetError) as caught:
        check_classes([first, second], 10)
    assert caught.value.code == "class-collision"
    assert set(caught.value.facts.values()) == {printable(first), printable(second)}


@pytest.mark.parametrize(
    ("names", "code"),
    [(["one"], "need-two-classes"), ([f"c{i}" for i in range(1001)], "too-many-classes")],
)
def test_number_of_classes_is_bounded(names: list[str], code: str) -> None:
    with pytest.raises(DatasetError) as caught:
        check_classes(names, 1000)
    assert caught.value.code == code


def test_ten_thousand_classes_are_not_compared_each_with_each() -> None:
    images = [f"class{i}/{i}.jpg" for i in range(10_000)]
    started = time.monotonic()
    labels = layout(*images).labels
    assert len(check_classes((label.spelling for label in labels.values()), 10_000)) == 10_000
    assert time.monotonic() - started < 30  # comparing each with each takes minutes
