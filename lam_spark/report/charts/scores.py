"""Histogram of the scores on the contact list."""

from __future__ import annotations

from collections.abc import Sequence

from lam_spark.report import text as words
from lam_spark.report.charts import svg
from lam_spark.report.charts.axes import Scale, percent_labels, ticks
from lam_spark.report.content import HistogramBin


def score_histogram(
    bins: Sequence[HistogramBin], width: float = 760, height: float = 240, customers: str = "customers"
) -> str:
    """Draw the number of customers on the list by score.

    Args:
        bins: The bins, in any order.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
        customers: The data set's word for customers.

    Returns:
        An SVG, or an empty string if no bin contains a customer.
    """
    drawn = [b for b in bins if words.is_number(b.low) and words.is_number(b.high) and b.high > b.low]
    if not any(b.count > 0 for b in drawn):
        return ""
    low, high = min(b.low for b in drawn), max(b.high for b in drawn)
    highest = max(b.count for b in drawn)
    left, right, top, bottom = 40.0, width - 16, 24.0, height - 40
    across, up = Scale(low, high, left, right), Scale(0.0, highest, bottom, top)
    body: list[str] = [svg.text(0, 10, f"\u2191 {customers} on the list", "axis")]
    for mark in [t for t in ticks(0, highest, 4) if t == int(t)]:
        body.append(svg.line(left, up(mark), right, up(mark), "grid"))
        body.append(svg.text(left - 6, up(mark) + 4, words.count(mark), "axis", "end"))
    for b in drawn:
        x1, x2, y = across(b.low), across(b.high), up(b.count)
        body.append(svg.rect(x1 + 0.5, y, x2 - x1 - 1, bottom - y, "model", _bin_text(b)))
    body.append(svg.line(left, bottom, right, bottom, "base"))
    marks = ticks(low, high, 5)
    for mark, label in zip(marks, percent_labels(marks), strict=True):
        x = across(mark)
        body.append(svg.line(x, bottom, x, bottom + 4, "base"))
        body.append(svg.text(x, bottom + 17, label, "axis", "middle"))
    body.append(svg.text((left + right) / 2, bottom + 35, "predicted probability", "axis", "middle"))
    values = "; ".join(map(_bin_text, drawn))
    title = f"Predicted probabilities of the {customers} on the list"
    return svg.svg("scores", width, height, title, values + ".", body)


def _bin_text(b: HistogramBin) -> str:
    return f"{words.percent(b.low)} to {words.percent(b.high)}: {words.count(b.count)}"
