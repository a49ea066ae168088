"""From typed results to the content of a report."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Mapping, Sequence

from lam_spark.config import Config, TargetConfig
from lam_spark.evaluation.results import EvaluateResult, MeasuredRankings, RankingMetrics
from lam_spark.labels.splits import UNUSED
from lam_spark.labels.stage import ExamplesResult
from lam_spark.report import content as c
from lam_spark.report import text
from lam_spark.report.entries import ListEntries
from lam_spark.runtime.provenance import package_versions
from lam_spark.scoring.stage import ScoreResult
from lam_spark.storage.tables.registry import TABLES
from lam_spark.training.stage import TrainResult


def headlines(
    config: Config, held_out: c.HeldOut | None, not_measured: str, contacts: c.ContactList
) -> tuple[c.Headline, ...]:
    """The large numbers at the top: three, or two if the model is not measured."""
    nouns = config.words
    expected = text.count(round(text.expected_successes(contacts) or 0))
    has_offer = proposes_something(config.targets[config.scoring.target])
    listed = c.Headline(
        f"{nouns.customers} to contact",
        text.count(contacts.customers),
        f"about {expected} expected to act"
        if has_offer
        else f"sum of the predicted probabilities: {expected}",
    )
    if held_out is None:
        return listed, c.Headline("held-out AUC", text.MISSING, not_measured)
    model, baseline = held_out.rankings[0], held_out.rankings[1]
    return (
        listed,
        c.Headline(
            "lift of the top decile",
            text.ratio(model.deciles[0].lift),
            f"held-out; {baseline.name}: {text.ratio(baseline.deciles[0].lift)}, random order: 1.0",
        ),
        c.Headline(
            "held-out AUC",
            text.three_decimals(model.auc),
            f"{baseline.name}: {text.three_decimals(baseline.auc)}; {held_out.examples:,} {nouns.examples}",
        ),
    )


def proposes_something(target: TargetConfig) -> bool:
    """Whether a query of the target is an event, such as an offer; regular queries are points in time."""
    return target.every_days is None


def held_out(target: TargetConfig, result: EvaluateResult) -> c.HeldOut | None:
    """The model, the baseline and random order on the test period; None if the model is not measured."""
    if result.rankings is None or result.period is None:
        return None
    start, end = (dt.date.fromisoformat(day) for day in result.period)
    low, high = result.rankings.auc_difference
    rankings = (
        _ranking("the model", "model", "the registered model's score", result.rankings.model),
        _ranking(
            target.baseline_name,
            "baseline",
            f"{target.baseline} over {target.baseline_filter}",
            result.rankings.baseline,
            difference_low=low,
            difference_high=high,
            lift_difference=result.rankings.lift_difference,
        ),
        _random_order(result),
    )
    return c.HeldOut(start, end, result.examples, result.positives, rankings)


def targets(config: Config, result: EvaluateResult) -> tuple[c.TargetResult, ...]:
    """Every target on the test period, the scored one first."""
    comparisons = result.comparisons
    facts = {result.target: (result.examples, result.not_measured)}
    facts |= {name: (each.examples, each.not_measured) for name, each in result.secondary_targets.items()}
    rows = []
    for name, (examples, not_measured) in facts.items():
        target, comparison = config.targets[name], comparisons.get(name)
        rows.append(
            c.TargetResult(
                name=name,
                description=target.description,
                examples=examples,
                metric="" if comparison is None else comparison.name.replace("auc", "AUC"),
                model=None if comparison is None else comparison.model,
                baseline=None if comparison is None else comparison.baseline,
                baseline_name=target.baseline_name,
                is_behind=comparison is not None and comparison.is_behind,
                not_measured=not_measured,
            )
        )
    return tuple(rows)


def queries(result: ExamplesResult | None) -> tuple[c.QueryCount, ...]:
    """What became of all queries of every target."""
    if result is None:
        return ()
    return tuple(
        c.QueryCount(
            name,
            counts.queries,
            tuple((split, of_split.examples) for split, of_split in counts.used.items()),
            tuple(c.Loss(UNUSED[reason], count) for reason, count in counts.unused.items() if count),
        )
        for name, counts in result.targets.items()
    )


def stale_channels(score: ScoreResult, examples: ExamplesResult | None) -> tuple[c.StaleChannel, ...]:
    """Channels that were silent for too long at the time of the scores, and the targets that they concern."""
    targets = {} if examples is None else examples.targets
    return tuple(
        c.StaleChannel(
            name, silence, tuple(t for t, counts in targets.items() if name in counts.outcome_channels)
        )
        for name, silence in score.stale.items()
    )


def _ranking(
    name: str,
    kind: c.RankingKind,
    description: str,
    metrics: RankingMetrics,
    *,
    difference_low: float | None = None,
    difference_high: float | None = None,
    lift_difference: tuple[float, float] | None = None,
) -> c.Ranking:
    low, high = metrics.auc_interval
    return c.Ranking(
        name,
        kind,
        description,
        metrics.auc,
        low,
        high,
        metrics.deciles,
        difference_low=difference_low,
        difference_high=difference_high,
        lift_interval=metrics.lift_interval,
        lift_difference=lift_difference,
    )


def _random_order(result: EvaluateResult) -> c.Ranking:
    rate = result.positives / max(result.examples, 1)
    deciles = tuple(
        c.Decile(number, result.examples / 10, result.positives / 10, rate, 1.0, number / 10)
        for number in range(1, 11)
    )
    return c.Ranking("random order", "random", "no ranking at all", 0.5, None, None, deciles)


def calibration(rankings: MeasuredRankings | None) -> c.Calibration | None:
    """Predicted probabilities compared with observed rates; None if the model is not measured."""
    if rankings is None:
        return None
    metrics = rankings.calibration
    return c.Calibration(
        metrics.bins, metrics.brier, metrics.brier_of_base_rate, metrics.expected_calibration_error
    )


def funnel(
    config: Config, entries: ListEntries, sources: Sequence[c.SourceCount], rejected: Mapping[str, int]
) -> tuple[c.FunnelStep, ...]:
    """Every step from raw rows to delivered customers, with its losses."""
    score, deliver = entries.score, entries.deliver
    purpose = config.consent.contact_purpose
    status = score.consent[purpose]
    has_offer = proposes_something(config.targets[config.scoring.target])
    row_losses = {
        "seen before (exact duplicates)": sum(source.duplicates for source in sources),
        "the id belongs to no customer yet": sum(source.unresolved for source in sources),
        **{f"rejected: {reason}": count for reason, count in rejected.items()},
    }
    consent_losses = {
        "opted out": status.opted_out,
        "never asked (no statement means no)": status.never_asked,
        "statements disagree (unclear means no)": status.unclear,
    }
    scoring_losses = {
        "no event before the date of the list": status.opted_in - score.customers_scored - score.truncated,
        "too few of the events before that date are kept": score.truncated,
    }
    rows_in, events = (sum(getattr(source, name) for source in sources) for name in ("rows_in", "events"))
    return (
        c.FunnelStep("Raw rows", rows_in, "rows", note="as the channels delivered them"),
        c.FunnelStep("Events", events, "events", _losses(row_losses), "who, when, where, what, how"),
        c.FunnelStep("With any event", status.customers, "customers", note="everyone the channels know"),
        c.FunnelStep(
            "Eligible",
            status.opted_in,
            "customers",
            _losses(consent_losses),
            f"opted in to {purpose.replace('_', ' ')}",
        ),
        c.FunnelStep(
            "Scored",
            score.customers_scored,
            "customers",
            _losses(scoring_losses),
            f"each for {text.counted(score.proposals, 'proposal', 'proposals')}" if has_offer else "",
        ),
        c.FunnelStep(
            "Still eligible at delivery",
            score.customers_scored - deliver.suppressed_by_consent,
            "customers",
            _losses({"withdrew since they were scored": deliver.suppressed_by_consent}),
            "checked again, newest ledger",
        ),
        c.FunnelStep(
            "Delivered",
            deliver.delivered,
            "customers",
            _losses({f"below the {config.delivery.capacity:,} places of the list": deliver.below_capacity}),
        ),
    )


def _losses(counts: Mapping[str, int]) -> tuple[c.Loss, ...]:
    return tuple(c.Loss(reason, count) for reason, count in counts.items() if count)


def training(result: TrainResult) -> c.Training:
    """Training curves, size and cost."""
    summary = result.training
    selected_by = "by validation loss" if summary.validation else "the last: too few to judge"
    unit, seconds = ("GPU", summary.gpu_seconds)
    if seconds is None:
        unit, seconds = ("core", summary.core_seconds)
    return c.Training(
        result.curves,
        (
            ("parameters", f"{summary.parameters:,}"),
            ("events read", f"{summary.tokens:,}"),
            ("wall time", text.duration(summary.seconds)),
            ("processes", str(summary.world_size)),
            (f"{unit}-hours", f"{(seconds or 0.0) / 3600:.2f}"),
            ("FLOPs", f"{summary.flops:.2g}"),
            ("best epoch", f"{summary.best_epoch} ({selected_by})"),
        ),
    )


def versions(entries: ListEntries, java_version: str) -> tuple[c.VersionGroup, ...]:
    """Versions of tables, model, code and packages that the list comes from."""
    newest, tables, train = entries.by_stage["deliver"], entries.table_versions, entries.train
    return (
        c.VersionGroup(
            "Tables (Delta version)",
            tuple((name, str(tables[name])) for name in TABLES if name in tables),
        ),
        c.VersionGroup(
            "Model",
            (
                ("name", f"{train.model_name}, version {entries.score.model_version}"),
                ("alias", train.model_alias),
                ("sha256", entries.score.model_digest),
            ),
        ),
        c.VersionGroup(
            "Code and configuration",
            (
                ("lam_spark", newest.lam_spark),
                ("git commit", newest.git_commit),
                ("configuration", newest.config_digest),
                ("Python", platform.python_version()),
                ("Java", java_version),
            ),
        ),
        c.VersionGroup("Packages", tuple(package_versions().items())),
    )
