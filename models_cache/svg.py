"""Scalable drawings: written by hand-made primitives, and refused where they could act.

Deterministic: the same figures give the same bytes, so a plot has a digest like every other file.
`check_svg` accepts what `Drawing` writes and little else; a browser that opens an imported plot
is shown shapes and text, never a script, a link or a style sheet.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

_NAMESPACE = "http://www.w3.org/2000/svg"
_FONT = "system-ui, sans-serif"
_ELEMENTS = frozenset({"svg", "title", "rect", "line", "polyline", "circle", "text"})
_ATTRIBUTES = frozenset(
    {
        "viewBox", "width", "height", "role", "font-family", "font-size",
        "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "points", "fill", "fill-opacity",
        "stroke", "stroke-width", "stroke-dasharray", "text-anchor", "transform",
    }
)  # fmt: skip

INK, FAINT, PAPER = "#1f2430", "#c9ced8", "#ffffff"
BLUE, ORANGE = "#2b6cb0", "#c05621"


class Drawing:
    """An SVG under construction; coordinates in px from the upper left corner.

    Args:
        width_px: Size.
        height_px: Size.
        title: What a screen reader says.
    """

    def __init__(self, width_px: int, height_px: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="{_NAMESPACE}" viewBox="0 0 {width_px} {height_px}" width="{width_px}" '
            f'height="{height_px}" role="img" font-family="{_FONT}" font-size="12">',
            f"<title>{escape(title)}</title>",
        ]
        self.rect(0, 0, width_px, height_px, PAPER)

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, *, opacity: float = 1
    ) -> None:
        """Fill a rectangle."""
        self._add("rect", x=x, y=y, width=width, height=height, fill=fill, fill_opacity=opacity)

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        colour: str = INK,
        *,
        dashed: bool = False,
    ) -> None:
        """Draw a thin line."""
        (x1, y1), (x2, y2) = start, end
        dashes = {"stroke_dasharray": "4 4"} if dashed else {}
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, **dashes)

    def curve(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """Join points by lines."""
        joined = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", points=joined, fill="none", stroke=colour, stroke_width=2)

    def dot(self, x: float, y: float, colour: str) -> None:
        """Draw a small disc."""
        self._add("circle", cx=x, cy=y, r=3, fill=colour)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        colour: str = INK,
    ) -> None:
        """Write words with their base line at `y`."""
        self._add("text", words, x=x, y=y, fill=colour, text_anchor=anchor)

    def text_upwards(self, x: float, y: float, words: str, *, anchor: str = "middle") -> None:
        """Write words from bottom to top."""
        turn = f"rotate(-90 {_number(x)} {_number(y)})"
        self._add("text", words, x=x, y=y, fill=INK, text_anchor=anchor, transform=turn)

    def as_bytes(self) -> bytes:
        """Return the file."""
        return "\n".join([*self._parts, "</svg>", ""]).encode()

    def _add(self, element: str, words: str | None = None, **attributes: float | str) -> None:
        written = " ".join(
            f"{name.replace('_', '-')}={quoteattr(_number(value))}"
            for name, value in attributes.items()
        )
        end = "/>" if words is None else f">{escape(words)}</{element}>"
        self._parts.append(f"<{element} {written}{end}")


def check_svg(text: str) -> None:
    """Raise `ValueError` unless a text is an SVG of plain shapes and words."""
    if "<!" in text or "<?" in text:  # entities, style sheets
        raise ValueError("only elements and text are allowed")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a document type there are no entities
    except ET.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    for element in root.iter():
        space, _, name = str(element.tag).removeprefix("{").rpartition("}")
        if space != _NAMESPACE or name not in _ELEMENTS:
            raise ValueError(f"element {name[:40]!r} is not allowed")
        if strange := set(element.keys()) - _ATTRIBUTES:
            raise ValueError(f"attribute {min(strange)[:40]!r} is not allowed")
        if any("(" in value for key, value in element.items() if key != "transform"):
            raise ValueError("a value calls a function, such as url()")


def _number(value: float | str) -> str:
    """Return a coordinate with at most two decimals; texts as they are."""
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))
