"""Scales, ticks and legends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lam_spark.report.charts import svg


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from the values ``low`` to ``high`` to the pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers inside ``[low, high]``.

    Args:
        low: Lower end of the axis.
        high: Upper end of the axis.
        about: Approximate number of ticks.

    Returns:
        The ticks in ascending order; only ``low`` if the axis has no length.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_step(values: Sequence[float]) -> float:
    """Return the distance between two ticks, 1 if there is only one."""
    return values[1] - values[0] if len(values) > 1 else 1.0


def percent_labels(values: Sequence[float]) -> list[str]:
    """Format ticks as percentages with as many decimals as their distance needs."""
    step = tick_step(values)
    digits = 0 if step >= 0.00999 else 1 if step >= 0.000999 else 2
    return [f"{value * 100:.{digits}f}%" for value in values]


def legend(entries: Sequence[tuple[str, str, str]], width: float) -> tuple[list[str], float]:
    """Draw a legend.

    Args:
        entries: (mark, class, name) with the mark "bar", "line" or "dots".
        width: Width in pixels; entries wrap.

    Returns:
        The elements and the height they take.
    """
    elements: list[str] = []
    x, y = 0.0, 12.0
    for mark, cls, name in entries:
        shown = svg.fit(name, width - 30)
        needed = 24 + len(shown) * svg.CHAR_WIDTH
        if x and x + needed > width:
            x, y = 0.0, y + 18
        if mark == "bar":
            elements.append(svg.rect(x, y - 9, 12, 10, cls))
        else:
            elements.append(svg.line(x, y - 4, x + 16, y - 4, cls))
            if mark == "dots":
                elements.append(svg.dot(x + 8, y - 4, 3, svg.dot_class(cls)))
        elements.append(svg.text(x + (18 if mark == "bar" else 22), y, shown, full=name))
        x += needed + 14
    return elements, y + 14
