"""Stage `report`: one HTML file from the audit and the contact list.

Reads the newest entry of every stage that belongs to the list; from tables only aggregates and the head of the list.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import functions as F

from lam_spark.report import assemble
from lam_spark.report import content as c
from lam_spark.report.aggregates import (
    count_rejected_rows,
    count_rows_by_channel,
    measured_arrivals,
    read_contact_list,
    recorded_lookups,
)
from lam_spark.report.entries import entries_of_list
from lam_spark.report.render import write_report
from lam_spark.runtime.audit import verify_chain
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.jvm import java_version
from lam_spark.runtime.results import StageResult
from lam_spark.scoring.freshness import require_scores
from lam_spark.sources.slices import all_kept_lookups
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.time import sql_literal


@dataclass(frozen=True)
class ReportResult(StageResult):
    """The written report.

    Attributes:
        report: The HTML file.
        contact_list: The CSV file of the list.
        headlines: Label -> (value, note) of the large numbers.
    """

    report: str
    contact_list: str
    headlines: dict[str, tuple[str, str]]

    @property
    def message(self) -> str:
        """One line for people."""
        return self.report

    @property
    def details(self) -> tuple[str, ...]:
        """The headlines and the files."""
        lines = (f"{label}: {value} ({note})" for label, (value, note) in self.headlines.items())
        return ("", *lines, f"Report: {self.report}", f"List: {self.contact_list}")

    @property
    def summary(self) -> Mapping[str, Any]:
        """The files and the numbers."""
        numbers = {label: value for label, (value, _) in self.headlines.items()}
        return {"report": self.report, "contact_list": self.contact_list, "numbers": numbers}


@stage
def report(ctx: RunContext) -> ReportResult:
    """Write `report/<as_of>.html` (atomically; replaces an earlier one).

    Raises:
        AuditError: The audit chain, which the report is made from, is broken or of another version.
        ConfigError: A stage that the report needs has not run, or not for this `as_of`, target or model.
        DataQualityError: The scores were made for another configuration.
    """
    config, tables = ctx.config, ctx.tables
    verify_chain(tables)
    target = config.targets[config.scoring.target]
    entries = entries_of_list(tables, config.scoring.target, config.as_of, ctx.as_of)
    is_of_list = (F.col("target") == config.scoring.target) & (
        F.col("as_of") == F.expr(sql_literal(ctx.as_of))
    )
    require_scores(
        tables, config, one_row(tables.read("scores").where(is_of_list).agg(F.first("definition")))[0]
    )
    channels = list(config.channels)
    sources = count_rows_by_channel(tables, channels)
    contacts = read_contact_list(tables, ctx.as_of, entries.deliver.path, config.delivery.capacity)
    held_out = assemble.held_out(target, entries.evaluate)
    content = c.ReportContext(
        title=f"Whom to contact on {config.as_of:%d %B %Y}",
        data_set=config.name.replace("_", " ").title(),
        as_of=config.as_of,
        generated_at=dt.datetime.now(dt.UTC),
        run_id=ctx.run_id,
        target=target.description,
        contact_list=contacts,
        headlines=assemble.headlines(config, held_out, entries.evaluate.not_measured, contacts),
        held_out=held_out,
        not_measured=entries.evaluate.not_measured,
        targets=assemble.targets(config, entries.evaluate),
        queries=assemble.queries(entries.examples),
        has_offer=assemble.proposes_something(target),
        calibration=assemble.calibration(entries.evaluate.rankings),
        funnel=assemble.funnel(config, entries, sources, count_rejected_rows(tables, channels)),
        sources=sources,
        arrivals=measured_arrivals(tables, config.channels),
        stale_channels=assemble.stale_channels(entries.score, entries.examples),
        lookups=recorded_lookups(tables, all_kept_lookups(config)),
        consent=tuple(
            c.ConsentCount(purpose, **vars(counts)) for purpose, counts in entries.score.consent.items()
        ),
        training=assemble.training(entries.train),
        stages=tuple(
            c.StageCost(name, entry.seconds, entry.peak_memory_gib)
            for name, entry in entries.by_stage.items()
        ),
        versions=assemble.versions(entries, java_version(ctx.spark)),
        notes=config.notes,
        nouns=c.Nouns(**config.words.model_dump()),
    )
    path = write_report(content, config.workspace / "report" / f"{config.as_of}.html")
    return ReportResult(
        report=str(path),
        contact_list=contacts.path,
        headlines={line.label: (line.value, line.note) for line in content.headlines},
    )
