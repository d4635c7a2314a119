"""What small inline SVG drawings are made of: no script, and no colour of their own.

Rules. Only classes are set here, the page's style sheet colours them (light, dark, print). Every text goes through
`Markup.format`, which escapes it. Every drawing has a title and a description, so that it can be read aloud.
Coordinates are user units of one view box, `WIDTH` wide.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 440
HEIGHT = 264
LEFT, RIGHT, TOP, BOTTOM = 42, 58, 14, 34


@dataclass(frozen=True, slots=True)
class Caption:
    """What a drawing says to those who cannot see it; `key` is unique in the page."""

    key: str
    title: str
    description: str


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, evenly spaced, that enclose low and high.

    >>> ticks(0, 0.91)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    rough = ((high - low) or abs(high) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * nice for nice in (1, 2, 2.5, 5) if rough <= power * nice), power * 10)
    return [float(f"{step * i:.12g}") for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def plain(value: float) -> str:
    """A number as short as it can be written."""
    return f"{value:g}"


def text(kind: str, x: float, y: float, words: str) -> Markup:
    """Words at a place; `kind` is their CSS class."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def line(kind: str, x1: float, y1: float, x2: float, y2: float, width: float | None = None) -> Markup:
    """A straight line; `width` where the style sheet does not say it."""
    thick = Markup("") if width is None else Markup(' stroke-width="{:.2f}"').format(width)
    drawn = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"{}/>')
    return drawn.format(kind, x1, y1, x2, y2, thick)


def svg(caption: Caption, height: int, parts: Iterable[Markup]) -> Markup:
    """The whole drawing, `height` high."""
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {w} {h}" '
        'aria-labelledby="{k}-t {k}-d">'
        '<title id="{k}-t">{t}</title><desc id="{k}-d">{d}</desc>'
    ).format(w=WIDTH, h=height, k=caption.key, t=caption.title, d=caption.description)
    return head + Markup("").join(parts) + Markup("</svg>")
