"""Renders the report as one self-contained HTML file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from lam_spark.report import charts
from lam_spark.report import text as words
from lam_spark.report.content import ReportContext
from lam_spark.storage.files import write_atomically

_TEMPLATE = "report.html.j2"
_STYLE_SHEET = "report.css"
# Widths in CSS pixels for which charts are drawn.
_WIDE = 760.0
_NARROW = 348.0


def render(context: ReportContext) -> str:
    """Render one report.

    Args:
        context: Everything the report shows.

    Returns:
        A complete HTML document without external resources.
    """
    held_out, nouns, contacts = context.held_out, context.nouns, context.contact_list
    curves = () if context.training is None else context.training.curves
    expected = words.expected_successes(contacts)
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            context=context,
            nouns=nouns,
            held_out=held_out,
            contacts=contacts,
            chart={name: Markup(svg) for name, svg in _charts(context).items()},
            curves=[(caption, Markup(svg)) for caption, svg in charts.training_curves(curves, _NARROW)],
            share_bar=lambda share: Markup(charts.share_bar(share)),
            comparison=words.compare_with_baseline(held_out, nouns, context.not_measured),
            lift_sentence=words.lift_sentence(held_out, nouns),
            gains_sentence=words.gains_sentence(held_out, nouns),
            calibration_sentence=words.calibration_sentence(context.calibration, nouns),
            list_sentence=words.list_sentence(contacts, nouns, context.has_offer),
            later_links_sentence=words.later_links_sentence(context.sources, nouns),
            top_decile=words.top_decile,
            counted=words.counted,
            unit=words.unit,
            mean_probability=None
            if expected is None or contacts.customers == 0
            else expected / contacts.customers,
            reconciliation=[words.reconcile(context.funnel, i) for i in range(len(context.funnel))],
            total_seconds=words.duration(sum(s.seconds for s in context.stages)),
        )
    )


def _environment() -> Environment:
    folder = files("lam_spark.report")
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in (_TEMPLATE, _STYLE_SHEET)}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        percent=words.percent,
        ratio=words.ratio,
        three_decimals=words.three_decimals,
        day=words.day,
        timestamp=words.timestamp,
    )
    return environment


def _charts(context: ReportContext) -> dict[str, str]:
    """Draw the charts by name; the style sheet shows the wide or the narrow one."""
    held_out, customers = context.held_out, context.nouns.customers
    bins = context.contact_list.score_histogram
    return {
        "lift_wide": charts.lift_bars(held_out, _WIDE),
        "lift_narrow": charts.lift_bars(held_out, _NARROW, 280),
        "gains": charts.gains_curve(held_out, _NARROW),
        "calibration": charts.calibration_plot(context.calibration, _NARROW),
        "scores_wide": charts.score_histogram(bins, _WIDE, 240, customers),
        "scores_narrow": charts.score_histogram(bins, _NARROW, 220, customers),
        "funnel_wide": charts.funnel(context.funnel, _WIDE, customers),
        "funnel_narrow": charts.funnel(context.funnel, _NARROW, customers),
        "stages_wide": charts.stage_bars(context.stages, _WIDE),
        "stages_narrow": charts.stage_bars(context.stages, _NARROW),
    }


def write_report(context: ReportContext, path: Path) -> Path:
    """Render a report and write it atomically, so that a reader never sees a partial file.

    Args:
        context: Everything the report shows.
        path: HTML file to write or replace; missing parent folders are created.

    Returns:
        ``path``.
    """
    write_atomically(path, render(context))
    return path
