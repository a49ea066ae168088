"""Horizontal bars: the funnel, the cost of each stage, and the small bar of a table cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lam_spark.report import text as words
from lam_spark.report.charts import svg
from lam_spark.report.content import FunnelStep, StageCost


def funnel(steps: Sequence[FunnelStep], width: float = 760, customers: str = "customers") -> str:
    """Draw the steps as bars; the pale part of a bar shows the loss of the step.

    Bars share a scale until the unit changes: a recount (customers after events) starts again at full width.

    Args:
        steps: The steps in order.
        width: Width in CSS pixels.
        customers: The data set's word for customers.

    Returns:
        An SVG, or an empty string without steps.
    """
    if not steps:
        return ""
    body: list[str] = []
    y, scale, before = 0.0, 1, 0
    for index, step in enumerate(steps):
        if words.starts_scale(steps, index):
            if index:
                body.append(svg.line(0, y + 8, width, y + 8, "gap"))
                y += 16
            scale, before = max(step.count, 1), step.count
        body += _funnel_step(step, y, scale, before, width, customers)
        before = step.count
        y += 44
    counts = "; ".join(f"{s.label}: {words.count(s.count)} {words.unit(s.unit, customers)}" for s in steps)
    return svg.svg("funnel", width, y, f"From raw rows to delivered {customers}", counts + ".", body)


def _funnel_step(
    step: FunnelStep, y: float, scale: int, before: int, width: float, customers: str
) -> list[str]:
    number = f"{words.count(step.count)} {words.unit(step.unit, customers)}"
    label = svg.fit(step.label, width - len(number) * svg.CHAR_WIDTH - 24)
    elements = [
        svg.text(0, y + 13, label, "strong", full=step.label),
        svg.text(width, y + 13, number, "num", "end"),
    ]
    full = min(max(before / scale, 0.0), 1.0) * width
    left = min(max(step.count / scale, 0.0), 1.0) * width
    if full > left:
        tip = f"lost in this step: {words.count(before - step.count)}"
        elements.append(svg.rect(left, y + 20, full - left, 12, "lost", tip))
    filled = max(left, 1.5 if step.count else 0)
    elements.append(svg.rect(0, y + 20, filled, 12, "model", f"{step.label}: {number}"))
    return elements


def stage_bars(stages: Sequence[StageCost], width: float = 760) -> str:
    """Draw the wall-clock time of every stage as bars, with its peak memory.

    Args:
        stages: The stages in the order they ran.
        width: Width in CSS pixels.

    Returns:
        An SVG, or an empty string without stages.
    """
    if not stages:
        return ""
    longest = max((s.seconds for s in stages if words.is_number(s.seconds)), default=0.0)
    body: list[str] = []
    y = 0.0
    for stage in stages:
        cost = words.duration(stage.seconds)
        if stage.peak_memory_gib is not None:
            cost += f", {words.gib(stage.peak_memory_gib)}"
        share = stage.seconds / longest if words.is_number(stage.seconds) and longest > 0 else 0.0
        if width > 500:  # name, bar and cost fit on one line
            bar = max(share * (width - 180 - 150), 1)
            body.append(svg.text(0, y + 12, svg.fit(stage.stage, 170), full=stage.stage))
            body.append(svg.rect(180, y + 3, bar, 10, "model"))
            body.append(svg.text(180 + bar + 8, y + 12, cost, "num"))
            y += 26
        else:
            name = svg.fit(stage.stage, width - len(cost) * svg.CHAR_WIDTH - 20)
            body.append(svg.text(0, y + 12, name, full=stage.stage))
            body.append(svg.text(width, y + 12, cost, "num", "end"))
            body.append(svg.rect(0, y + 18, max(share * width, 1), 6, "model"))
            y += 38
    costs = "; ".join(
        f"{s.stage}: {words.duration(s.seconds)}"
        + ("" if s.peak_memory_gib is None else f", {words.gib(s.peak_memory_gib)} at peak")
        for s in stages
    )
    return svg.svg("stages", width, y, "Cost of each stage", costs + ".", body)


def share_bar(share: float, width: float = 96, height: float = 8) -> str:
    """Draw a small bar for a table cell; hidden from screen readers because the cell shows the number too.

    Args:
        share: Length as a fraction of ``width``.
        width: Full width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG.
    """
    filled = min(max(share, 0.0), 1.0) * width if math.isfinite(share) else 0.0
    shown_width, shown_height = svg.number(width), svg.number(height)
    return (
        f'<svg class="share" aria-hidden="true" width="{shown_width}" height="{shown_height}" '
        f'viewBox="0 0 {shown_width} {shown_height}">{svg.rect(0, 0, width, height, "track")}'
        f"{svg.rect(0, 0, filled, height, 'model')}</svg>"
    )
