"""Finds the fault points in the code: every place that a test must have struck."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "models_cache", "service")

#: What `Database.write(point)` and `durable.writing(point=...)` reach, by what takes the name.
OF_A_TRANSACTION = ("before_tx", "in_tx", "after_commit")
OF_A_FILE = ("before_fsync", "before_rename", "after_rename")

#: Names that the code puts together, and what they can be.
_PUT_TOGETHER = {
    "event.value": ("cancel", "pause", "resume"),
    "FAULT_POINT": ("decoder.image",),
}
_DEFAULT_NAMES = frozenset({"file", "write"})  # of what nobody has named
_FILE_WRITERS = frozenset({"writing", "write_bytes", "_store"})


def points_in_the_code() -> set[str]:
    """Return every point, without the number that some carry behind a colon."""
    found: set[str] = set()
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            found.update(_points_of(ast.parse(path.read_text())))
    return found


def _points_of(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else _name_of(node.func)
        if called == "reach" and node.args:
            yield from _literals(node.args[0])
        elif called == "write" and _is_of_a_database(node.func):
            assert node.args, f"line {node.lineno}: a transaction without a name"
            for name in _literals(node.args[0]):
                yield from (f"{name}.{stage}" for stage in OF_A_TRANSACTION)
        elif called in _FILE_WRITERS:
            positional = node.args[1:] if called == "writing" else node.args[2:]
            given = [*positional, *(k.value for k in node.keywords if k.arg == "point")]
            for name in (name for value in given for name in _literals(value)):
                yield from (f"{name}.{stage}" for stage in OF_A_FILE)


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_of_a_database(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and "database" in ast.unparse(function.value)


def _literals(node: ast.expr) -> Iterator[str]:
    """Yield what a name can be; nothing for one that a caller hands through."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value not in _DEFAULT_NAMES:
            yield node.value
    elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        start = str(node.values[0].value)
        if ":" in start:
            yield start.partition(":")[0]
    elif isinstance(node, ast.JoinedStr):
        (first, *_) = node.values
        assert isinstance(first, ast.FormattedValue)
        yield from _PUT_TOGETHER.get(ast.unparse(first.value), ())
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body)
        yield from _literals(node.orelse)
    else:
        yield from _PUT_TOGETHER.get(ast.unparse(node), ())
