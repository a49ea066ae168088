"""SVG elements as strings. Coordinates are in CSS pixels; text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

CHAR_WIDTH = 6.0  # width of an average character of 12 px text


def number(value: float) -> str:
    """Format a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def svg(name: str, width: float, height: float, title: str, desc: str, body: Iterable[str]) -> str:
    """Return a labelled drawing; ``name`` and ``width`` make its ids unique on the page."""
    key = f"{name}-{number(width).replace('.', '-')}"
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {number(width)} {number(height)}" '
        f'style="max-width:{number(width * 1.3)}px" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(desc)}</desc>'
        f"{''.join(body)}</svg>"
    )


def text(x: float, y: float, content: str, cls: str = "", anchor: str = "start", full: str = "") -> str:
    """Return a text element; ``full`` becomes its tooltip where it differs from ``content``."""
    tip = f"<title>{escape(full)}</title>" if full and full != content else ""
    css_class = f' class="{cls}"' if cls else ""
    text_anchor = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{number(x)}" y="{number(y)}"{css_class}{text_anchor}>{tip}{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, cls: str, tip: str = "") -> str:
    """Return a rectangle; a negative size becomes 0."""
    size = f'width="{number(max(width, 0))}" height="{number(max(height, 0))}"'
    head = f'<rect x="{number(x)}" y="{number(y)}" {size} class="{cls}"'
    return f"{head}><title>{escape(tip)}</title></rect>" if tip else f"{head}/>"


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """Return a straight line."""
    return f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" class="{cls}"/>'


def dot(x: float, y: float, radius: float, cls: str, tip: str = "") -> str:
    """Return a circle."""
    head = f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" class="{cls}"'
    return f"{head}><title>{escape(tip)}</title></circle>" if tip else f"{head}/>"


def dot_class(line_class: str) -> str:
    """Return the class of the dots on a line: "model-line" becomes "model-dot"."""
    return line_class.removesuffix("line") + "dot"


def path(points: Sequence[tuple[float, float]], cls: str) -> str:
    """Return a line through several points."""
    coordinates = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polyline points="{coordinates}" class="{cls}"/>'


def fit(content: str, width: float) -> str:
    """Shorten a text with an ellipsis so that it fits into ``width``."""
    room = max(int(width / CHAR_WIDTH), 4)
    return content if len(content) <= room else content[: room - 1].rstrip() + "\u2026"
