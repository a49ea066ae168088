"""Charts as SVG strings."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from lam_spark.report import charts
from lam_spark.report.content import ReportContext
from tests.report.page import Page


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.71), (0, 4.2), (2.1, 8.4), (0, 1e6), (0.2, 0.2)])
def test_ticks_are_inside_the_axis_and_evenly_spaced(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert low - 1e-9 <= marks[0] <= marks[-1] <= high + 1e-9
    gaps = [b - a for a, b in pairwise(marks)]
    assert not gaps or max(gaps) - min(gaps) < 1e-9 * max(abs(high), 1)
    assert len(marks) <= 7


def test_the_height_of_a_bar_is_proportional_to_its_lift(context: ReportContext) -> None:
    page = Page(charts.lift_bars(context.held_out, 760))
    svg = charts.lift_bars(context.held_out, 760)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" class="model"><title>the model, decile', svg)]
    assert page.open == []
    assert len(heights) == 10
    assert heights[0] / heights[1] == pytest.approx(109 / 61, rel=0.01)
