"""Tables and texts of model cards; texts come from strangers and act on nothing."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Return a text that neither ends a table's cell nor starts an element or a link."""
    for character in "|<>[]":
        text = text.replace(character, f"&#{ord(character)};")
    return " ".join(text.split())
