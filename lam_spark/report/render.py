"""The report as one self-contained HTML file."""

from __future__ import annotations

import os
import tempfile
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from lam_spark.report import charts
from lam_spark.report import text as words
from lam_spark.report.content import ReportContext

_TEMPLATE = "report.html.j2"
_WIDE = 760.0
_NARROW = 348.0


def _environment() -> Environment:
    source = (files("lam_spark.report") / _TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({_TEMPLATE: source}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        percent=words.percent,
        ratio=words.ratio,
        three=words.three,
        day=words.day,
        moment=words.moment,
    )
    return environment


def render(context: ReportContext) -> str:
    """Render one report.

    Args:
        context: Everything the report shows.

    Returns:
        A complete HTML document that loads nothing from elsewhere.
    """
    held_out, nouns = context.held_out, context.nouns
    curves = () if context.training is None else context.training.curves
    bins = context.contact_list.score_histogram
    listed = context.contact_list.customers
    expected = words.expected_successes(context.contact_list)
    drawings = {
        "lift_wide": charts.lift_bars(held_out, _WIDE),
        "lift_narrow": charts.lift_bars(held_out, _NARROW, 280),
        "gains": charts.gains_curve(held_out, _NARROW),
        "calibration": charts.calibration_plot(context.calibration, _NARROW),
        "scores_wide": charts.score_histogram(bins, _WIDE, 240, nouns.customers),
        "scores_narrow": charts.score_histogram(bins, _NARROW, 220, nouns.customers),
        "funnel_wide": charts.funnel(context.funnel, _WIDE, nouns.customers),
        "funnel_narrow": charts.funnel(context.funnel, _NARROW, nouns.customers),
        "stages_wide": charts.stage_bars(context.stages, _WIDE),
        "stages_narrow": charts.stage_bars(context.stages, _NARROW),
    }
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            context=context,
            nouns=nouns,
            held_out=held_out,
            contacts=context.contact_list,
            chart={name: Markup(svg) for name, svg in drawings.items()},
            curves=[(caption, Markup(svg)) for caption, svg in charts.training_curves(curves, _NARROW)],
            share_bar=lambda share: Markup(charts.share_bar(share)),
            verdict=words.verdict(held_out, nouns),
            lift_sentence=words.lift_sentence(held_out, nouns),
            gains_sentence=words.gains_sentence(held_out, nouns),
            calibration_sentence=words.calibration_sentence(context.calibration, nouns),
            list_sentence=words.list_sentence(context.contact_list, nouns),
            first_tenth=words.first_tenth,
            auc_text=words.auc_text,
            counted=words.counted,
            unit=words.unit,
            mean_chance=None if expected is None or listed == 0 else expected / listed,
            reconciliation=[words.balance(context.funnel, i) for i in range(len(context.funnel))],
            total_seconds=words.duration(sum(s.seconds for s in context.stages)),
        )
    )


def write_report(context: ReportContext, path: Path) -> Path:
    """Render a report and put it at ``path`` in one move, so that a reader never sees half of it.

    Args:
        context: Everything the report shows.
        path: The HTML file to write or replace; its folder is made if missing.

    Returns:
        ``path``.
    """
    html = render(context)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
