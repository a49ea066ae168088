"""Charts as inline SVG strings: pure functions of the context's numbers, without scripts or own fonts.

Every function takes the width in CSS pixels it is drawn for: at that width its text is 12 px. The style sheet
of the page colours the classes used here, for light, dark and print. A chart with nothing to draw is an empty
string.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

from lam_spark.report import text as words
from lam_spark.report.content import (
    Calibration,
    CurvePoint,
    FunnelStep,
    HeldOut,
    HistogramBin,
    Phase,
    Ranking,
    StageCost,
)

_CHAR = 6.0  # width of an average character of 12 px text


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(name: str, width: float, height: float, title: str, desc: str, body: Iterable[str]) -> str:
    key = f"{name}-{_n(width).replace('.', '-')}"
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {_n(width)} {_n(height)}" '
        f'style="max-width:{_n(width * 1.15)}px" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(desc)}</desc>'
        f"{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, cls: str = "", anchor: str = "start", full: str = "") -> str:
    tip = f"<title>{escape(full)}</title>" if full and full != text else ""
    kind = f' class="{cls}"' if cls else ""
    turn = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{kind}{turn}>{tip}{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, cls: str, tip: str = "") -> str:
    size = f'width="{_n(max(width, 0))}" height="{_n(max(height, 0))}"'
    head = f'<rect x="{_n(x)}" y="{_n(y)}" {size} class="{cls}"'
    return f"{head}><title>{escape(tip)}</title></rect>" if tip else f"{head}/>"


def _line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{cls}"/>'


def _dot(x: float, y: float, radius: float, cls: str, tip: str = "") -> str:
    head = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{cls}"'
    return f"{head}><title>{escape(tip)}</title></circle>" if tip else f"{head}/>"


def _path(points: Sequence[tuple[float, float]], cls: str) -> str:
    return f'<polyline points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}" class="{cls}"/>'


def _fit(text: str, width: float) -> str:
    room = max(int(width / _CHAR), 4)
    return text if len(text) <= room else text[: room - 1].rstrip() + "\u2026"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside ``[low, high]``.

    Args:
        low: Lower end of an axis.
        high: Upper end of it.
        about: How many ticks to aim at.

    Returns:
        The ticks in order; only ``low`` if the axis has no length.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _tick_percent(value: float, step: float) -> str:
    digits = 0 if step >= 0.00999 else 1 if step >= 0.000999 else 2
    return f"{value * 100:.{digits}f}%"


def _step(values: Sequence[float]) -> float:
    return values[1] - values[0] if len(values) > 1 else 1.0


def _legend(entries: Sequence[tuple[str, str, str]], width: float) -> tuple[list[str], float]:
    """Swatches with names: (mark, class, name); returns the marks and the height they take."""
    parts: list[str] = []
    x, y = 0.0, 12.0
    for mark, cls, name in entries:
        shown = _fit(name, width - 30)
        needed = 24 + len(shown) * _CHAR
        if x and x + needed > width:
            x, y = 0.0, y + 18
        if mark == "bar":
            parts.append(_rect(x, y - 9, 12, 10, cls))
        else:
            parts.append(_line(x, y - 4, x + 16, y - 4, cls))
            if mark == "dots":
                parts.append(_dot(x + 8, y - 4, 3, cls.replace("line", "dot")))
        parts.append(_text(x + (18 if mark == "bar" else 22), y, shown, full=name))
        x += needed + 14
    return parts, y + 14


def funnel(steps: Sequence[FunnelStep], width: float = 760, customers: str = "customers") -> str:
    """The steps as bars, widest first; what a step lost is the pale rest of its bar.

    Bars share a scale until the unit changes: a recount (events, then customers) starts anew at full width.

    Args:
        steps: The steps in order.
        width: Width in CSS pixels.
        customers: What to call customers.

    Returns:
        An SVG, or an empty string without steps.
    """
    if not steps:
        return ""
    body: list[str] = []
    y, scale, before = 0.0, 1, 0
    for index, step in enumerate(steps):
        new = words.starts_scale(steps, index)
        if new:
            if index:
                y += 8
                body.append(_line(0, y, width, y, "gap"))
                y += 8
            scale, before = max(step.count, 1), step.count
        number = f"{words.count(step.count)} {words.unit(step.unit, customers)}"
        label = _fit(step.label, width - len(number) * _CHAR - 24)
        body.append(_text(0, y + 13, label, "strong", full=step.label))
        body.append(_text(width, y + 13, number, "num", "end"))
        full = min(max(before / scale, 0.0), 1.0) * width
        kept = min(max(step.count / scale, 0.0), 1.0) * width
        if full > kept:
            body.append(
                _rect(kept, y + 20, full - kept, 12, "lost", f"lost here: {words.count(before - step.count)}")
            )
        body.append(
            _rect(0, y + 20, max(kept, 1.5 if step.count else 0), 12, "model", f"{step.label}: {number}")
        )
        before = step.count
        y += 44
    told = "; ".join(f"{s.label}: {words.count(s.count)} {words.unit(s.unit, customers)}" for s in steps)
    return _svg("funnel", width, y, "From raw rows to delivered customers", told + ".", body)


def lift_bars(held_out: HeldOut | None, width: float = 760, height: float = 300) -> str:
    """Lift by tenth, the model beside the strongest rule, with a line where random order lies.

    Args:
        held_out: What happened in the held-out period.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string if no lift was measured.
    """
    if held_out is None:
        return ""
    shown = [(r, cls) for r, cls in ((held_out.model, "model"), (held_out.rule, "other")) if r is not None]
    drawn: list[tuple[Ranking, str, dict[int, float]]] = []
    for ranking, cls in shown:
        lifts = {d.decile: d.lift for d in ranking.deciles if words.is_number(d.lift)}
        if lifts:
            drawn.append((ranking, cls, lifts))
    if not drawn:
        return ""
    entries = [("bar", cls, _ranking_name(r)) for r, cls, _ in drawn]
    body, top = _legend([*entries, ("line", "random", "random order (1.0)")], width)
    left, bottom = 26.0, height - 40
    body.append(_text(0, top + 8, "\u2191 times the average rate", "axis"))
    top += 28
    most = max(max(lifts.values()) for _, _, lifts in drawn)
    marks = ticks(0, max(most, 1.0) * 1.02, 5)
    high = max(most * 1.02, 1.1)

    def place(lift: float) -> float:
        return bottom - max(lift, 0.0) / high * (bottom - top)

    for mark in marks:
        body.append(_line(left, place(mark), width, place(mark), "grid"))
        body.append(_text(left - 6, place(mark) + 4, f"{mark:g}", "axis", "end"))
    group = (width - left) / 10
    bar = min(group * (0.84 if len(drawn) == 1 else 0.42), 34)
    labels: list[str] = []
    for index, (ranking, cls, lifts) in enumerate(drawn):
        for decile, lift in sorted(lifts.items()):
            x = left + (decile - 0.5) * group + (index - len(drawn) / 2) * bar
            tip = f"{_ranking_name(ranking)}, tenth {decile}: {words.ratio(lift)} times the average"
            body.append(_rect(x + 0.5, place(lift), bar - 1, bottom - place(lift), cls, tip))
            rival = max((other.get(decile, 0.0) for _, _, other in drawn[1:]), default=0.0)
            if bar >= 24 or (index == 0 and (lift >= rival or decile == 1)):  # else it would sit on a bar
                labels.append(
                    _text(x + bar / 2, place(lift) - 5, words.ratio(lift), f"value {cls}-text", "middle")
                )
    body.append(_line(left, place(1.0), width, place(1.0), "random"))
    body.append(_line(left, bottom, width, bottom, "base"))
    body += labels
    for decile in range(1, 11):
        body.append(_text(left + (decile - 0.5) * group, bottom + 16, str(decile), "axis", "middle"))
    body.append(_text(left, bottom + 34, "\u2190 ranked first", "axis"))
    body.append(_text(width, bottom + 34, "ranked last \u2192", "axis", "end"))
    if width > 500:
        body.append(_text(left + (width - left) / 2, bottom + 34, "tenths of the ranking", "axis", "middle"))
    told = ". ".join(
        f"{_ranking_name(r)}: " + ", ".join(f"tenth {d} {words.ratio(v)}" for d, v in sorted(lifts.items()))
        for r, _, lifts in drawn
    )
    return _svg("lift", width, height, "Lift by tenth of the ranking", f"{told}. Random order is 1.0.", body)


def _ranking_name(ranking: Ranking) -> str:
    return "the model" if ranking.kind == "model" else ranking.name


def gains_curve(held_out: HeldOut | None, width: float = 360, height: float = 330) -> str:
    """The share of all successes reached, by the share of the ranking contacted.

    Args:
        held_out: What happened in the held-out period.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string if no gain was measured.
    """
    if held_out is None:
        return ""
    curves: list[tuple[str, str, list[tuple[float, float]]]] = []
    for ranking, cls in ((held_out.rule, "other-line"), (held_out.model, "model-line")):
        points = [] if ranking is None else _gain_points(ranking)
        if ranking is not None and len(points) > 1:
            curves.append((_ranking_name(ranking), cls, points))
    if not curves:
        return ""
    entries = [("dots", cls, name) for name, cls, _ in reversed(curves)]
    body, top = _legend([*entries, ("line", "random", "random order")], width)
    left, right, bottom = 40.0, width - 16, height - 40
    body.append(_text(0, top + 8, "\u2191 share of all successes reached", "axis"))
    top += 24

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (right - left), bottom - min(max(y, 0.0), 1.0) * (bottom - top)

    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, y) = place(mark, mark)
        body.append(_line(left, y, right, y, "grid" if mark else "base"))
        body.append(_text(left - 6, y + 4, f"{mark:.0%}", "axis", "end"))
        body.append(_text(x, bottom + 16, f"{mark:.0%}", "axis", "middle"))
    body.append(_line(*place(0, 0), *place(1, 1), "random"))
    for name, cls, points in curves:
        body.append(_path([place(x, y) for x, y in points], cls))
        for x, y in points[1:-1]:
            px, py = place(x, y)
            tip = f"{name}: the first {words.percent(x)} hold {words.percent(y)}"
            body.append(_dot(px, py, 3, cls.replace("line", "dot"), tip))
    body.append(_text((left + right) / 2, bottom + 34, "share of the ranking contacted", "axis", "middle"))
    told = ". ".join(
        f"{name}: " + ", ".join(f"{words.percent(x)} hold {words.percent(y)}" for x, y in points[1:])
        for name, _, points in reversed(curves)
    )
    return _svg("gains", width, height, "Cumulative gains", f"{told}. Random order is the diagonal.", body)


def _gain_points(ranking: Ranking) -> list[tuple[float, float]]:
    examples = sum(d.examples for d in ranking.deciles if words.is_number(d.examples))
    points = [(0.0, 0.0)]
    so_far = 0.0
    for decile in sorted(ranking.deciles, key=lambda d: d.decile):
        so_far += decile.examples if words.is_number(decile.examples) else 0.0
        x = so_far / examples if examples > 0 else decile.decile / 10
        if words.is_number(decile.cumulative_gain):
            points.append((min(x, 1.0), decile.cumulative_gain))
    return points


def calibration_plot(calibration: Calibration | None, width: float = 360, height: float = 330) -> str:
    """Observed against predicted chance, with 95% whiskers, both axes cut to the data's range.

    Args:
        calibration: The bins.
        width: Width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG, or an empty string without a bin to draw.
    """
    bins = [] if calibration is None else [b for b in calibration.bins if b.examples > 0]
    bins = [
        b
        for b in bins
        if all(words.is_number(v) for v in (b.mean_predicted, b.observed, b.observed_low, b.observed_high))
    ]
    if not bins:
        return ""
    body, top = _legend([("dots", "model-line", "a group, with its 95% range")], width)
    low = min(min(b.mean_predicted, b.observed_low) for b in bins)
    high = max(max(b.mean_predicted, b.observed_high) for b in bins)
    pad = max((high - low) * 0.05, 0.005)
    low, high = max(low - pad, 0.0), min(high + pad, 1.0)
    left, right, bottom = 40.0, width - 16, height - 40
    body.append(_text(0, top + 8, "\u2191 observed share", "axis"))
    top += 24

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    def up(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    marks = ticks(low, high, 5)
    for mark in marks:
        name = _tick_percent(mark, _step(marks))
        body.append(_line(left, up(mark), right, up(mark), "grid"))
        body.append(_text(left - 6, up(mark) + 4, name, "axis", "end"))
        body.append(_text(across(mark), bottom + 16, name, "axis", "middle"))
    body.append(_line(left, bottom, right, bottom, "base"))
    body.append(_line(left, bottom, right, top, "random"))
    for b in bins:
        x = across(b.mean_predicted)
        tip = (
            f"predicted {words.percent(b.mean_predicted)}, observed {words.percent(b.observed)} "
            f"(95% range {words.percent(b.observed_low)} to {words.percent(b.observed_high)}), "
            f"n = {words.count(b.examples)}"
        )
        body.append(_line(x, up(b.observed_low), x, up(b.observed_high), "whisker"))
        for end in (b.observed_low, b.observed_high):
            body.append(_line(x - 3, up(end), x + 3, up(end), "whisker"))
        body.append(_dot(x, up(b.observed), 4, "model-dot", tip))
    body.append(_diagonal_label([across(b.mean_predicted) for b in bins], left, right, top, bottom))
    body.append(_text((left + right) / 2, bottom + 34, "predicted chance", "axis", "middle"))
    told = "; ".join(
        f"predicted {words.percent(b.mean_predicted)}, observed {words.percent(b.observed)}" for b in bins
    )
    return _svg("calibration", width, height, "Observed against predicted chance", told + ".", body)


def _diagonal_label(xs: Sequence[float], left: float, right: float, top: float, bottom: float) -> str:
    """The diagonal's name along it, below it and in the widest gap between the points."""
    label = "predicted = observed"
    slope = (bottom - top) / (right - left)
    half = len(label) * _CHAR / 2 / math.hypot(1, slope) + 6
    stops = sorted([left, *xs, right])
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(stops)]
    centre = max(gaps)[1]
    centre = min(max(centre, left + half), right - half)
    y = bottom - (centre - left) * slope
    angle = -math.degrees(math.atan(slope))
    return (
        f'<text transform="translate({_n(centre)} {_n(y)}) rotate({_n(angle)})" y="15" class="axis halo" '
        f'text-anchor="middle">{label}</text>'
    )


def score_histogram(
    bins: Sequence[HistogramBin], width: float = 760, height: float = 240, customers: str = "customers"
) -> str:
    """How many customers on the list have which score.

    Args:
        bins: The bins, in any order.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
        customers: What to call customers.

    Returns:
        An SVG, or an empty string if no bin holds a customer.
    """
    drawn = [b for b in bins if words.is_number(b.low) and words.is_number(b.high) and b.high > b.low]
    if not any(b.count > 0 for b in drawn):
        return ""
    low, high = min(b.low for b in drawn), max(b.high for b in drawn)
    most = max(b.count for b in drawn)
    left, right, top, bottom = 40.0, width - 16, 24.0, height - 40
    body: list[str] = [_text(0, 10, f"\u2191 {customers} on the list", "axis")]
    for mark in [t for t in ticks(0, most, 4) if t == int(t)]:
        y = bottom - mark / most * (bottom - top)
        body.append(_line(left, y, right, y, "grid"))
        body.append(_text(left - 6, y + 4, words.count(mark), "axis", "end"))
    for b in drawn:
        x1 = left + (b.low - low) / (high - low) * (right - left)
        x2 = left + (b.high - low) / (high - low) * (right - left)
        y = bottom - b.count / most * (bottom - top)
        tip = f"{words.percent(b.low)} to {words.percent(b.high)}: {words.count(b.count)}"
        body.append(_rect(x1 + 0.5, y, x2 - x1 - 1, bottom - y, "model", tip))
    body.append(_line(left, bottom, right, bottom, "base"))
    marks = ticks(low, high, 5)
    for mark in marks:
        x = left + (mark - low) / (high - low) * (right - left)
        body.append(_line(x, bottom, x, bottom + 4, "base"))
        body.append(_text(x, bottom + 17, _tick_percent(mark, _step(marks)), "axis", "middle"))
    body.append(_text((left + right) / 2, bottom + 35, "predicted chance", "axis", "middle"))
    told = "; ".join(
        f"{words.percent(b.low)} to {words.percent(b.high)}: {words.count(b.count)}" for b in drawn
    )
    return _svg("scores", width, height, f"Chances of the {customers} on the list", told + ".", body)


_PHASES: tuple[Phase, ...] = ("pre-training", "fine-tuning", "refit")


def training_curves(
    points: Sequence[CurvePoint], width: float = 360, height: float = 220
) -> list[tuple[str, str]]:
    """One small chart for each phase's losses and one for its AUC, if it has them.

    Args:
        points: The measurements, in any order.
        width: Width of one chart in CSS pixels.
        height: Height of one chart in CSS pixels.

    Returns:
        (caption, SVG) pairs in the order of the phases; phases without a finite value are left out.
    """
    panels: list[tuple[str, str]] = []
    for phase in _PHASES:
        mine = [
            p for p in points if p.phase == phase and words.is_number(p.epoch) and words.is_number(p.value)
        ]
        for what, names in (("loss", ("loss", "validation loss")), ("AUC", ("validation AUC",))):
            lines = {n: sorted((p.epoch, p.value) for p in mine if p.name == n) for n in names}
            lines = {n: line for n, line in lines.items() if line}
            if lines:
                name = f"{phase}-{what}".lower()
                caption = f"{phase.capitalize()}: {what}"
                panels.append((caption, _curve_panel(name, caption, lines, width, height)))
    return panels


def _curve_panel(
    name: str, caption: str, lines: dict[str, list[tuple[float, float]]], width: float, height: float
) -> str:
    looks = {"loss": "model-line", "validation loss": "second-line", "validation AUC": "model-line"}
    body, top = _legend([("line", looks[n], n) for n in lines], width)
    values = [y for line in lines.values() for _, y in line]
    epochs = [x for line in lines.values() for x, _ in line]
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or max(abs(high) * 0.05, 0.01)
    low, high = low - pad, high + pad
    first, last = min(0.0, *epochs), max(epochs)
    if last <= first:
        last = first + 1
    left, right, bottom = 46.0, width - 14, height - 40

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - first) / (last - first) * (right - left), bottom - (y - low) / (high - low) * (
            bottom - top
        )

    marks = ticks(low, high, 4)
    digits = max(0, min(4, 1 - math.floor(math.log10(_step(marks)) + 1e-9) - 1)) if len(marks) > 1 else 2
    if len(marks) > 1 and any(abs(round(m, digits) - m) > 1e-9 for m in marks):
        digits += 1
    for mark in marks:
        y = place(first, mark)[1]
        body.append(_line(left, y, right, y, "grid"))
        body.append(_text(left - 6, y + 4, f"{mark:,.{digits}f}", "axis", "end"))
    body.append(_line(left, bottom, right, bottom, "base"))
    for mark in [t for t in ticks(first, last, 5) if t == int(t) or last - first < 3]:
        body.append(_text(place(mark, low)[0], bottom + 16, f"{mark:g}", "axis", "middle"))
    body.append(_text((left + right) / 2, bottom + 34, "epochs", "axis", "middle"))
    told: list[str] = []
    for n, line in lines.items():
        spots = [place(x, y) for x, y in line]
        if len(spots) > 1:
            body.append(_path(spots, looks[n]))
        if len(spots) <= 12:
            dot = looks[n].replace("line", "dot")
            body += [_dot(x, y, 2.5, dot) for x, y in spots]
        told.append(f"{n} from {line[0][1]:.3f} to {line[-1][1]:.3f} over {line[-1][0]:g} epochs")
    return _svg(f"curve-{name}", width, height, caption, "; ".join(told) + ".", body)


def stage_bars(stages: Sequence[StageCost], width: float = 760) -> str:
    """Wall-clock time of every stage as bars, with its peak memory.

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
    wide = width > 500
    for stage in stages:
        cost = words.duration(stage.seconds)
        if stage.peak_memory_gib is not None:
            cost += f", {words.gib(stage.peak_memory_gib)}"
        share = stage.seconds / longest if words.is_number(stage.seconds) and longest > 0 else 0.0
        if wide:
            name, room = _fit(stage.stage, 170), width - 180 - 150
            body.append(_text(0, y + 12, name, full=stage.stage))
            body.append(_rect(180, y + 3, max(share * room, 1), 10, "model"))
            body.append(_text(180 + max(share * room, 1) + 8, y + 12, cost, "num"))
            y += 26
        else:
            name = _fit(stage.stage, width - len(cost) * _CHAR - 20)
            body.append(_text(0, y + 12, name, full=stage.stage))
            body.append(_text(width, y + 12, cost, "num", "end"))
            body.append(_rect(0, y + 18, max(share * width, 1), 6, "model"))
            y += 38
    told = "; ".join(
        f"{s.stage}: {words.duration(s.seconds)}"
        + ("" if s.peak_memory_gib is None else f", {words.gib(s.peak_memory_gib)} at peak")
        for s in stages
    )
    return _svg("stages", width, y, "Cost of each stage", told + ".", body)


def share_bar(share: float, width: float = 96, height: float = 8) -> str:
    """A tiny bar for a table cell, hidden from screen readers because the number stands beside it.

    Args:
        share: Its length as a fraction of ``width``.
        width: Full width in CSS pixels.
        height: Height in CSS pixels.

    Returns:
        An SVG.
    """
    filled = min(max(share, 0.0), 1.0) * width if math.isfinite(share) else 0.0
    return (
        f'<svg class="share" aria-hidden="true" width="{_n(width)}" height="{_n(height)}" '
        f'viewBox="0 0 {_n(width)} {_n(height)}">{_rect(0, 0, width, height, "track")}'
        f"{_rect(0, 0, filled, height, 'model')}</svg>"
    )
