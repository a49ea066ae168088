"""Stage `report`: one HTML file from the run records and the contact list.

Reads the newest successful record of every stage that belongs to the list (`_entries`); from the tables only
aggregates and the head of the list.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import LongType

from lam_spark.errors import ConfigError
from lam_spark.report import content as c
from lam_spark.report import text as words
from lam_spark.report.render import write_report
from lam_spark.runtime.audit import latest_entries, verify_chain
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.runtime.provenance import package_versions
from lam_spark.storage.tables.registry import TABLES

_ROW_FATES = ("rows_in", "events", "duplicates", "quarantined", "unresolved")
_NEEDED = ("ingest", "score", "evaluate", "train", "deliver")
_HEAD_ROWS = 15
_HISTOGRAM_BINS = 20

Entry = dict[str, Any]
Having = dict[str, Callable[[Entry], bool]]


@stage
def run(run: Run) -> StageResult:
    """Write `report/<as_of>.html` (atomically, replacing the one of an earlier run).

    Raises:
        AuditError: the chain of the audit, which the report is made from, is broken.
        ConfigError: a stage that the report needs has not run yet, or not for this `as_of` or with another model.
    """
    verify_chain(run)
    context = _context(run, _entries(run))
    path = write_report(context, run.config.workspace / "report" / f"{run.config.as_of}.html")
    summary = {
        "report": str(path),
        "contact_list": context.contact_list.path,
        "numbers": {line.label: line.value for line in context.headlines},
    }
    lines = [f"{line.label}: {line.value} ({line.note})" for line in context.headlines]
    return StageResult(
        says=str(path),
        facts={
            "summary": summary,
            "lines": ["", *lines, f"Report: {path}", f"List: {context.contact_list.path}"],
        },
    )


def _entries(run: Run) -> dict[str, Entry]:
    """The newest record of each stage, of those that have to do with the list.

    The scores of this `as_of` and target that the tables hold, the list that was made of them, and what the model that
    gave them was trained on and held against. Other stages may have run since: for another day, for another target or
    with another model.
    """
    config = run.config
    target, day = config.scoring.target, F.col("as_of") == F.expr(sql_literal(run.as_of))
    scored_by = _run_of(run, "scores", day & (F.col("target") == target))
    listed_by = _run_of(run, "contact_list", day)

    def is_of_day(entry: Entry) -> bool:
        told = entry["config"]["scoring"]["target"], entry["as_of"]
        return told == (target, config.as_of.isoformat())

    def is_of_list(entry: Entry) -> bool:
        own = entry["facts"].get("scores_run_id") == scored_by
        # Of a list without a customer the table says nothing.
        return is_of_day(entry) and own and listed_by in (None, entry["run_id"])

    def is_of_scores(entry: Entry) -> bool:
        return is_of_day(entry) and entry["run_id"] == scored_by

    of_day: Having = {"score": is_of_scores, "deliver": is_of_list}
    newest = latest_entries(run, of_day)
    lacking = [stage for stage in _NEEDED if stage not in newest]
    if lacking:
        raise ConfigError(
            f"the report of {config.as_of} needs records of the stages {', '.join(lacking)}, of {' and '.join(of_day)} "
            f"those of the scores and the list of this --as-of and of the target {target!r} that are there now: run "
            "them in this order"
        )
    score = newest["score"]["facts"]

    def is_of_model(entry: Entry) -> bool:
        return bool(entry["facts"].get("digest") == score["digest"])

    def is_of_answers(entry: Entry) -> bool:
        return is_of_model(entry) and entry["config"]["scoring"]["target"] == target

    entries = latest_entries(run, {**of_day, "train": is_of_model, "evaluate": is_of_answers})
    strange = [stage for stage in ("train", "evaluate") if stage not in entries]
    if strange:
        again = ("train", "score", "evaluate", "deliver")
        raise ConfigError(
            f"the scores of {config.as_of} are of model version {score['model_version']}, of which no record of "
            f"{' or '.join(strange)} tells here: run {', '.join(again['train' not in strange :])} with the same --as-of"
        )
    return entries


def _run_of(run: Run, table: str, where: Column) -> str | None:
    """The run that has written these rows: a stage replaces those of its day whole."""
    if not run.tables.exists(table):
        return None
    row = run.tables.read(table).where(where).select("run_id").first()
    return None if row is None else str(row["run_id"])


def _context(run: Run, entries: dict[str, Entry]) -> c.ReportContext:
    config = run.config
    target = config.targets[config.scoring.target]
    channels = _events_by_channel(run)
    held = _held_out(run, entries["evaluate"]["facts"])
    contacts = _contact_list(run, entries["deliver"])
    return c.ReportContext(
        title=f"Whom to contact on {config.as_of:%d %B %Y}",
        data_set=config.name.replace("_", " ").title(),
        as_of=config.as_of,
        generated_at=dt.datetime.now(dt.UTC),
        run_id=run.run_id,
        target=target.description,
        contact_list=contacts,
        headlines=_headlines(run, held, contacts),
        held_out=held,
        calibration=_calibration(entries["evaluate"]["facts"]["calibration"]),
        funnel=_funnel(run, entries, channels),
        sources=tuple(
            c.SourceCount(source, **{name: counts[name] for name in _ROW_FATES})
            for source, counts in channels.items()
        ),
        consent=tuple(
            c.ConsentCount(purpose, **counts)
            for purpose, counts in entries["score"]["facts"]["standings"].items()
        ),
        training=_training(entries["train"]["facts"]),
        stages=tuple(
            c.StageCost(stage, entry["seconds"], entry["peak_memory_gib"])
            for stage, entry in _in_order(entries)
        ),
        versions=_versions(run, entries),
        notes=config.notes,
        nouns=c.Nouns(**config.words.model_dump()),
    )


def _headlines(run: Run, held: c.HeldOut, contacts: c.ContactList) -> tuple[c.Headline, ...]:
    model, rule = held.rankings[0], held.rankings[1]
    noun = run.config.words
    expected = words.expected_successes(contacts)
    return (
        c.Headline(
            f"{noun.customers} to contact",
            words.count(contacts.customers),
            f"about {words.count(round(expected or 0))} expected to act",
        ),
        c.Headline(
            "lift of the first tenth",
            words.ratio(model.deciles[0].lift),
            f"held-out; {rule.name}: {words.ratio(rule.deciles[0].lift)}, random order: 1.0",
        ),
        c.Headline(
            "held-out AUC",
            words.three(model.auc),
            f"{rule.name}: {words.three(rule.auc)}; {held.examples:,} {noun.examples}",
        ),
    )


def _held_out(run: Run, facts: Entry) -> c.HeldOut:
    def ranking(name: str, kind: c.RankingKind, description: str, part: Entry, **leads: Any) -> c.Ranking:
        low, high = part["interval"]
        tenths = tuple(c.Decile(**{**tenth, "decile": int(tenth["decile"])}) for tenth in part["deciles"])
        # Evaluations of earlier revisions have no ranges of the lifts.
        lift = part.get("lift_interval")
        return c.Ranking(name, kind, description, part["auc"], low, high, tenths, lift_range=lift, **leads)

    model, rule = facts["model"], facts["rule"]
    spec = run.config.targets[run.config.scoring.target]
    examples = sum(tenth["examples"] for tenth in model["deciles"])
    even = {
        "auc": 0.5,
        "interval": (None, None),
        "deciles": [
            {
                "decile": number,
                "examples": examples / 10,
                "positives": sum(t["positives"] for t in model["deciles"]) / 10,
                "rate": sum(t["positives"] for t in model["deciles"]) / max(examples, 1),
                "lift": 1.0,
                "cumulative_gain": number / 10,
            }
            for number in range(1, 11)
        ],
    }
    start, end = (dt.date.fromisoformat(day) for day in facts["period"])
    return c.HeldOut(
        start,
        end,
        round(examples),
        round(sum(tenth["positives"] for tenth in model["deciles"])),
        (
            ranking("the model", "model", "the registered model's score", model),
            ranking(
                spec.baseline_name,
                "rule",
                f"{spec.baseline} over {spec.baseline_filter}",
                rule,
                lead_low=facts["lead"][0],
                lead_high=facts["lead"][1],
                lift_lead=facts.get("lift_lead"),
            ),
            ranking("random order", "random", "no ranking at all", even),
        ),
    )


def _calibration(facts: Entry) -> c.Calibration:
    bins = tuple(c.CalibrationBin(**part) for part in facts["bins"])
    return c.Calibration(
        bins, facts["brier"], facts["brier_of_base_rate"], facts["expected_calibration_error"]
    )


def _funnel(
    run: Run, entries: dict[str, Entry], channels: dict[str, dict[str, int]]
) -> tuple[c.FunnelStep, ...]:
    score, deliver = entries["score"], entries["deliver"]
    rows = {name: sum(counts[name] for counts in channels.values()) for name in _ROW_FATES}
    refused = _refused(run, list(channels))
    losses = [
        c.Loss(text, rows[name])
        for name, text in (
            ("duplicates", "seen before (exact duplicates)"),
            ("unresolved", "the id is nobody's yet"),
        )
        if rows[name]
    ]
    losses += [c.Loss(f"refused: {reason}", count) for reason, count in refused.items()]
    purpose = run.config.consent.contact_purpose
    stands = score["facts"]["standings"][purpose]
    scored = score["counts"]["customers_scored"]
    denied = [
        c.Loss(text, stands[key])
        for key, text in (
            ("opted_out", "opted out"),
            ("never_asked", "never asked (no statement means no)"),
            ("unclear", "statements disagree (unclear means no)"),
        )
        if stands[key]
    ]
    # A record of an earlier version does not say it.
    cut_off = score["counts"].get("before_kept_events", 0)
    without = [
        c.Loss(text, count)
        for text, count in (
            ("no event before the date of the list", stands["opted_in"] - scored - cut_off),
            ("too few of the events before that date are kept", cut_off),
        )
        if count
    ]
    counts = deliver["counts"]
    withheld, below = counts["suppressed_by_consent"], counts["below_capacity"]
    return (
        c.FunnelStep("Raw rows", rows["rows_in"], "rows", note="as the channels delivered them"),
        c.FunnelStep("Events", rows["events"], "events", tuple(losses), "who, when, where, what, how"),
        c.FunnelStep("With any event", sum(stands.values()), "customers", note="everyone the channels know"),
        c.FunnelStep(
            "Eligible",
            stands["opted_in"],
            "customers",
            tuple(denied),
            f"opted in to {purpose.replace('_', ' ')}",
        ),
        c.FunnelStep(
            "Scored",
            scored,
            "customers",
            tuple(without),
            f"each for {score['counts']['proposals']} proposals",
        ),
        c.FunnelStep(
            "Still eligible at delivery",
            scored - withheld,
            "customers",
            (c.Loss("withdrew since they were scored", withheld),) if withheld else (),
            "asked again, newest ledger",
        ),
        c.FunnelStep(
            "Delivered",
            counts["delivered"],
            "customers",
            (c.Loss(f"below the {run.config.delivery.capacity:,} places of the list", below),)
            if below
            else (),
        ),
    )


def _refused(run: Run, channels: list[str]) -> dict[str, int]:
    """Rows of these channels that were refused, by reason, over all runs."""
    of_channels = run.tables.read("quarantine").where(F.col("source").isin(channels))
    counted = of_channels.groupBy("reason").count().orderBy("reason")
    return {row["reason"]: row["count"] for row in counted.toLocalIterator()}


def _events_by_channel(run: Run) -> dict[str, dict[str, int]]:
    """What became of all rows that each channel ever delivered, as the newest ingest left them."""
    of_channels = run.tables.read("reconciliation").where(F.col("source").isin(list(run.config.channels)))
    names = [f.name for f in of_channels.schema if isinstance(f.dataType, LongType)]
    summed = of_channels.groupBy("source").agg(*(F.sum(name).alias(name) for name in names))
    found = {row["source"]: {name: row[name] for name in names} for row in summed.toLocalIterator()}
    channels = {name: found[name] for name in run.config.channels if name in found}
    for counts in channels.values():
        found_later = counts["picked_up"] - counts["orphaned"]
        counts["events"] += found_later
        counts["unresolved"] -= found_later
    return channels


def _contact_list(run: Run, deliver: Entry) -> c.ContactList:
    listed = run.tables.read("contact_list").where(F.col("as_of") == F.expr(sql_literal(run.as_of)))
    by_proposal = (
        listed.groupBy("proposal_id", "description")
        .agg(F.count("*").alias("customers"), F.avg("proposal_necessity").alias("mean"))
        .orderBy(F.desc("customers"), "proposal_id")
    )
    head = listed.orderBy("rank").limit(_HEAD_ROWS)
    return c.ContactList(
        path=deliver["facts"]["path"],
        customers=deliver["counts"]["delivered"],
        capacity=run.config.delivery.capacity,
        by_proposal=tuple(
            c.ProposalCount(row["proposal_id"], row["description"], row["customers"], row["mean"])
            for row in by_proposal.toLocalIterator()
        ),
        head=tuple(
            c.Contact(
                row["rank"],
                row["customer_key"],
                row["proposal_id"],
                row["description"],
                row["proposal_necessity"],
            )
            for row in head.toLocalIterator()
        ),
        score_histogram=_score_histogram(listed),
    )


def _score_histogram(listed: DataFrame) -> tuple[c.HistogramBin, ...]:
    bounds = listed.agg(F.min("proposal_necessity"), F.max("proposal_necessity")).first()
    if bounds is None or bounds[0] is None:
        return ()
    low, high = float(bounds[0]), float(bounds[1])
    width = (high - low) / _HISTOGRAM_BINS or 1.0
    number = F.least(F.floor((F.col("proposal_necessity") - low) / width), F.lit(_HISTOGRAM_BINS - 1))
    counts = {
        row["bin"]: row["count"] for row in listed.groupBy(number.alias("bin")).count().toLocalIterator()
    }
    return tuple(
        c.HistogramBin(low + i * width, low + (i + 1) * width, counts.get(i, 0))
        for i in range(_HISTOGRAM_BINS)
    )


def _training(facts: Entry) -> c.Training:
    points = []
    for record in facts["curves"]:
        names: tuple[c.Measure, ...] = (
            ("loss",) if record["event"] == "epoch end" else ("validation loss", "validation AUC")
        )
        points += [
            c.CurvePoint(record["phase"], float(record["epoch"]), name, record[name])
            for name in names
            if name in record
        ]
    trained = facts["training"]
    unit = "GPU" if "gpu_seconds" in trained else "core"
    return c.Training(
        tuple(points),
        (
            ("parameters", f"{trained['parameters']:,}"),
            ("events read", f"{trained['tokens']:,}"),
            ("wall time", words.duration(trained["seconds"])),
            ("world_size", str(trained["world_size"])),
            (f"{unit}-hours", f"{trained[f'{unit.lower()}_seconds'] / 3600:.2f}"),
            # A model of an earlier version does not say it.
            *((("FLOPs", f"{trained['flops']:.2g}"),) if "flops" in trained else ()),
            ("chosen epoch", f"{trained['chosen_epoch']} (by validation loss)"),
        ),
    )


def _versions(run: Run, entries: dict[str, Entry]) -> tuple[c.VersionGroup, ...]:
    model = entries["train"]["facts"]["model"]
    java = run.spark.sparkContext._jvm.System.getProperty("java.version")  # type: ignore[union-attr]
    newest, told = entries["deliver"], _table_versions(entries)
    return (
        c.VersionGroup(
            "Tables (Delta version)",
            tuple((name, str(told[name])) for name in TABLES if name in told),
        ),
        c.VersionGroup(
            "Model",
            (
                ("name", f"{model['name']}, version {entries['score']['facts']['model_version']}"),
                ("alias", model["alias"]),
                ("sha256", entries["score"]["facts"]["digest"]),
            ),
        ),
        c.VersionGroup(
            "Code and configuration",
            (
                ("lam_spark", newest["lam_spark"]),
                ("git commit", newest["git_commit"]),
                ("configuration", newest["config_digest"]),
                ("Python", platform.python_version()),
                ("Java", str(java)),
            ),
        ),
        c.VersionGroup("Packages", tuple(package_versions().items())),
    )


def _table_versions(entries: dict[str, Entry]) -> dict[str, int]:
    """Which versions the list comes of, as its stages wrote or read them; tables may have moved on since.

    Of a table that several stages touched, the last of those in the flow tells.
    """
    told: dict[str, int] = {}
    for _, entry in _in_order(entries):
        told |= entry["tables_read"] | entry["tables_written"]
    return told


def _in_order(entries: dict[str, Entry]) -> list[tuple[str, Entry]]:
    """Stages by when they ran, as the records' run ids and the flow order them."""
    flow = (
        "fetch",
        "ingest",
        "consent",
        "sequences",
        "examples",
        "snapshot",
        "train",
        "score",
        "evaluate",
        "deliver",
    )
    return [(stage, entries[stage]) for stage in flow if stage in entries]
