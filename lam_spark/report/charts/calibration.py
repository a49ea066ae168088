"""Chart of observed rates against predicted probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lam_spark.report import text as words
from lam_spark.report.charts import svg
from lam_spark.report.charts.axes import Scale, legend, percent_labels, ticks
from lam_spark.report.content import Calibration, CalibrationBin


def calibration_plot(calibration: Calibration | None, width: float = 360, height: float = 330) -> str:
    """Draw observed against predicted rates, with 95% confidence intervals; both axes show the data's range.

    Args:
        calibration: The bins.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string without a bin to draw.
    """
    bins = [] if calibration is None else [b for b in calibration.bins if b.examples > 0 and _is_finite(b)]
    if not bins:
        return ""
    body, top = legend([("dots", "model-line", "group with its 95% confidence interval")], width)
    low = min(min(b.mean_predicted, b.observed_low) for b in bins)
    high = max(max(b.mean_predicted, b.observed_high) for b in bins)
    padding = max((high - low) * 0.05, 0.005)
    low, high = max(low - padding, 0.0), min(high + padding, 1.0)
    left, right, bottom = 40.0, width - 16, height - 40
    body.append(svg.text(0, top + 8, "\u2191 observed share", "axis"))
    across, up = Scale(low, high, left, right), Scale(low, high, bottom, top + 24)
    marks = ticks(low, high, 5)
    for mark, label in zip(marks, percent_labels(marks), strict=True):
        body.append(svg.line(left, up(mark), right, up(mark), "grid"))
        body.append(svg.text(left - 6, up(mark) + 4, label, "axis", "end"))
        body.append(svg.text(across(mark), bottom + 16, label, "axis", "middle"))
    body.append(svg.line(left, bottom, right, bottom, "base"))
    body.append(svg.line(left, bottom, right, up.end, "random"))
    for group in bins:
        body += _bin_elements(group, across, up)
    body.append(_diagonal_label([across(b.mean_predicted) for b in bins], across, up))
    body.append(svg.text((left + right) / 2, bottom + 34, "predicted probability", "axis", "middle"))
    values = "; ".join(
        f"predicted {words.percent(b.mean_predicted)}, observed {words.percent(b.observed)}" for b in bins
    )
    return svg.svg(
        "calibration", width, height, "Observed share against predicted probability", values + ".", body
    )


def _is_finite(group: CalibrationBin) -> bool:
    values = (group.mean_predicted, group.observed, group.observed_low, group.observed_high)
    return all(map(words.is_number, values))


def _bin_elements(group: CalibrationBin, across: Scale, up: Scale) -> list[str]:
    x = across(group.mean_predicted)
    ends = (group.observed_low, group.observed_high)
    tip = (
        f"predicted {words.percent(group.mean_predicted)}, observed {words.percent(group.observed)} "
        f"(95% confidence interval {words.percent(ends[0])} to {words.percent(ends[1])}), "
        f"n = {words.count(group.examples)}"
    )
    return [
        svg.line(x, up(ends[0]), x, up(ends[1]), "whisker"),
        *(svg.line(x - 3, up(end), x + 3, up(end), "whisker") for end in ends),
        svg.dot(x, up(group.observed), 4, "model-dot", tip),
    ]


def _diagonal_label(xs: Sequence[float], across: Scale, up: Scale) -> str:
    """Write the diagonal's label below it, in the widest gap between the points."""
    label = "predicted = observed"
    left, right = across.start, across.end
    slope = (up.start - up.end) / (right - left)
    half = len(label) * svg.CHAR_WIDTH / 2 / math.hypot(1, slope) + 6
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(sorted([left, *xs, right]))]
    centre = min(max(max(gaps)[1], left + half), right - half)
    y = up.start - (centre - left) * slope
    angle = -math.degrees(math.atan(slope))
    position = f"translate({svg.number(centre)} {svg.number(y)}) rotate({svg.number(angle)})"
    return f'<text transform="{position}" y="15" class="axis halo" text-anchor="middle">{label}</text>'
