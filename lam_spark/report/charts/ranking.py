"""Charts of the rankings: lift by decile and cumulative gains."""

from __future__ import annotations

from lam_spark.report import text as words
from lam_spark.report.charts import svg
from lam_spark.report.charts.axes import Scale, legend, ticks
from lam_spark.report.content import HeldOut, Ranking

_Lifts = tuple[str, str, dict[int, float]]  # name, class, lift by decile
_Curve = tuple[str, str, list[tuple[float, float]]]  # name, class, (share contacted, share reached)


def lift_bars(held_out: HeldOut | None, width: float = 760, height: float = 300) -> str:
    """Draw the lift by decile of the model and the strongest baseline, with a line at random order.

    Args:
        held_out: Results on the held-out period.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string if no lift was measured.
    """
    series = [] if held_out is None else _lifts(held_out)
    if not series:
        return ""
    entries = [("bar", cls, name) for name, cls, _ in series]
    body, top = legend([*entries, ("line", "random", "random order (1.0)")], width)
    left, bottom = 26.0, height - 40
    body.append(svg.text(0, top + 8, "\u2191 lift (times the average rate)", "axis"))
    highest = max(max(lifts.values()) for _, _, lifts in series)
    place = Scale(0.0, max(highest * 1.02, 1.1), bottom, top + 28)
    for mark in ticks(0, max(highest, 1.0) * 1.02, 5):
        body.append(svg.line(left, place(mark), width, place(mark), "grid"))
        body.append(svg.text(left - 6, place(mark) + 4, f"{mark:g}", "axis", "end"))
    bars, labels = _lift_elements(series, place, left, width)
    body += bars
    body.append(svg.line(left, place(1.0), width, place(1.0), "random"))
    body.append(svg.line(left, bottom, width, bottom, "base"))
    body += labels
    group = (width - left) / 10
    for decile in range(1, 11):
        body.append(svg.text(left + (decile - 0.5) * group, bottom + 16, str(decile), "axis", "middle"))
    body.append(svg.text(left, bottom + 34, "\u2190 ranked first", "axis"))
    body.append(svg.text(width, bottom + 34, "ranked last \u2192", "axis", "end"))
    body.append(svg.text(left + (width - left) / 2, bottom + 34, "decile", "axis", "middle"))
    values = ". ".join(
        f"{name}: " + ", ".join(f"decile {d} {words.ratio(v)}" for d, v in sorted(lifts.items()))
        for name, _, lifts in series
    )
    return svg.svg("lift", width, height, "Lift by decile", f"{values}. Random order is 1.0.", body)


def _lifts(held_out: HeldOut) -> list[_Lifts]:
    series = []
    for ranking, cls in ((held_out.model, "model"), (held_out.baseline, "baseline")):
        if ranking is not None:
            lifts = {d.decile: d.lift for d in ranking.deciles if words.is_number(d.lift)}
            if lifts:
                series.append((_ranking_name(ranking), cls, lifts))
    return series


def _lift_elements(
    series: list[_Lifts], place: Scale, left: float, width: float
) -> tuple[list[str], list[str]]:
    """Return the bars and their value labels; the labels are drawn on top of all lines."""
    group = (width - left) / 10
    bar = min(group * (0.84 if len(series) == 1 else 0.42), 34)
    line = place(1.0)
    bars: list[str] = []
    labels: list[str] = []
    for index, (name, cls, lifts) in enumerate(series):
        for decile, lift in sorted(lifts.items()):
            x = left + (decile - 0.5) * group + (index - len(series) / 2) * bar
            y = place(max(lift, 0.0))
            tip = f"{name}, decile {decile}: {words.ratio(lift)} times the average rate"
            bars.append(svg.rect(x + 0.5, y, bar - 1, place.start - y, cls, tip))
            neighbour = max((other.get(decile, 0.0) for _, _, other in series[1:]), default=0.0)
            # A label of a narrow bar would overlap a higher neighbour.
            if bar >= 24 or (index == 0 and (lift >= neighbour or decile == 1)):
                base = line if line < y < line + 14 else y  # keep the label clear of the random line
                label = words.ratio(lift)
                labels.append(svg.text(x + bar / 2, base - 5, label, f"value {cls}-text", "middle"))
    return bars, labels


def gains_curve(held_out: HeldOut | None, width: float = 360, height: float = 330) -> str:
    """Draw the share of all successes reached by the share of the ranking contacted.

    Args:
        held_out: Results on the held-out period.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string if no gain was measured.
    """
    curves = [] if held_out is None else _gain_curves(held_out)
    if not curves:
        return ""
    entries = [("dots", cls, name) for name, cls, _ in reversed(curves)]
    body, top = legend([*entries, ("line", "random", "random order")], width)
    left, right, bottom = 40.0, width - 16, height - 40
    body.append(svg.text(0, top + 8, "\u2191 share of all successes reached", "axis"))
    across, up = Scale(0.0, 1.0, left, right), Scale(0.0, 1.0, bottom, top + 24)
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = across(mark), up(mark)
        body.append(svg.line(left, y, right, y, "grid" if mark else "base"))
        body.append(svg.text(left - 6, y + 4, f"{mark:.0%}", "axis", "end"))
        body.append(svg.text(x, bottom + 16, f"{mark:.0%}", "axis", "middle"))
    body.append(svg.line(across(0), up(0), across(1), up(1), "random"))
    for name, cls, points in curves:
        places = [(across(x), up(min(max(y, 0.0), 1.0))) for x, y in points]
        body.append(svg.path(places, cls))
        for (x, y), (px, py) in list(zip(points, places, strict=True))[1:-1]:
            tip = f"{name}: the top {words.percent(x)} contain {words.percent(y)}"
            body.append(svg.dot(px, py, 3, svg.dot_class(cls), tip))
    body.append(svg.text((left + right) / 2, bottom + 34, "share of the ranking contacted", "axis", "middle"))
    values = ". ".join(
        f"{name}: "
        + ", ".join(f"the top {words.percent(x)} contain {words.percent(y)}" for x, y in points[1:])
        for name, _, points in reversed(curves)
    )
    desc = f"{values}. Random order is the diagonal."
    return svg.svg("gains", width, height, "Cumulative gains", desc, body)


def _gain_curves(held_out: HeldOut) -> list[_Curve]:
    """Return the curves in drawing order: the model last, on top."""
    curves = []
    for ranking, cls in ((held_out.baseline, "baseline-line"), (held_out.model, "model-line")):
        points = [] if ranking is None else _gain_points(ranking)
        if ranking is not None and len(points) > 1:
            curves.append((_ranking_name(ranking), cls, points))
    return curves


def _gain_points(ranking: Ranking) -> list[tuple[float, float]]:
    examples = sum(d.examples for d in ranking.deciles if words.is_number(d.examples))
    points = [(0.0, 0.0)]
    cumulative = 0.0
    for decile in sorted(ranking.deciles, key=lambda d: d.decile):
        cumulative += decile.examples if words.is_number(decile.examples) else 0.0
        x = cumulative / examples if examples > 0 else decile.decile / 10
        if words.is_number(decile.cumulative_gain):
            points.append((min(x, 1.0), decile.cumulative_gain))
    return points


def _ranking_name(ranking: Ranking) -> str:
    return "the model" if ranking.kind == "model" else ranking.name
