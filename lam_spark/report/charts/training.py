"""Training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lam_spark.report import text as words
from lam_spark.report.charts import svg
from lam_spark.report.charts.axes import Scale, legend, tick_step, ticks
from lam_spark.training.summary import CurvePoint, PhaseName

_PHASES: tuple[PhaseName, ...] = ("pre-training", "fine-tuning", "refit")
_STYLES = {"loss": "model-line", "validation loss": "second-line", "validation AUC": "model-line"}

_Lines = dict[str, list[tuple[float, float]]]  # metric -> (epoch, value), by epoch


def training_curves(
    points: Sequence[CurvePoint], width: float = 360, height: float = 220
) -> list[tuple[str, str]]:
    """Draw one small chart for the losses of each phase and one for its AUC, if it was measured.

    Args:
        points: The measurements, in any order.
        width: Width of one chart in CSS pixels.
        height: Height of one chart in CSS pixels.

    Returns:
        (caption, SVG) pairs in the order of the phases; phases without a finite value are left out.
    """
    panels: list[tuple[str, str]] = []
    finite = [p for p in points if words.is_number(p.epoch) and words.is_number(p.value)]
    for phase in _PHASES:
        in_phase = [p for p in finite if p.phase == phase]
        for title, names in (("loss", ("loss", "validation loss")), ("AUC", ("validation AUC",))):
            lines = {n: sorted((p.epoch, p.value) for p in in_phase if p.metric == n) for n in names}
            lines = {n: line for n, line in lines.items() if line}
            if lines:
                caption = f"{phase.capitalize()}: {title}"
                panels.append((caption, _panel(f"{phase}-{title}".lower(), caption, lines, width, height)))
    return panels


def _panel(name: str, caption: str, lines: _Lines, width: float, height: float) -> str:
    body, top = legend([("line", _STYLES[n], n) for n in lines], width)
    values = [y for line in lines.values() for _, y in line]
    epochs = [x for line in lines.values() for x, _ in line]
    low, high = min(values), max(values)
    padding = (high - low) * 0.06 or max(abs(high) * 0.05, 0.01)
    first, last = min(0.0, *epochs), max(epochs)
    if last <= first:
        last = first + 1
    left, right, bottom = 46.0, width - 14, height - 40
    across, up = Scale(first, last, left, right), Scale(low - padding, high + padding, bottom, top)
    marks = ticks(up.low, up.high, 4)
    for mark, label in zip(marks, _tick_labels(marks), strict=True):
        body.append(svg.line(left, up(mark), right, up(mark), "grid"))
        body.append(svg.text(left - 6, up(mark) + 4, label, "axis", "end"))
    body.append(svg.line(left, bottom, right, bottom, "base"))
    for mark in [t for t in ticks(first, last, 5) if t == int(t) or last - first < 3]:
        body.append(svg.text(across(mark), bottom + 16, f"{mark:g}", "axis", "middle"))
    body.append(svg.text((left + right) / 2, bottom + 34, "epochs", "axis", "middle"))
    changes: list[str] = []
    for metric, line in lines.items():
        places = [(across(x), up(y)) for x, y in line]
        if len(places) > 1:
            body.append(svg.path(places, _STYLES[metric]))
        if len(places) <= 12:
            body += [svg.dot(x, y, 2.5, svg.dot_class(_STYLES[metric])) for x, y in places]
        changes.append(f"{metric} from {line[0][1]:.3f} to {line[-1][1]:.3f} over {line[-1][0]:g} epochs")
    return svg.svg(f"curve-{name}", width, height, caption, "; ".join(changes) + ".", body)


def _tick_labels(marks: Sequence[float]) -> list[str]:
    """Format ticks with as few decimals as show them exactly."""
    digits = 2
    if len(marks) > 1:
        digits = max(0, min(4, -math.floor(math.log10(tick_step(marks)) + 1e-9)))
        if any(abs(round(mark, digits) - mark) > 1e-9 for mark in marks):
            digits += 1
    return [f"{mark:,.{digits}f}" for mark in marks]
