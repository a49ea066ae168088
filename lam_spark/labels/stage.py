"""Stage `examples`: point-in-time examples of every target, from the targets' SQL predicates.

An example is a query at `as_of` with its label. Its history is what was known before `as_of`, its label what happened
after it and before `label_end`. Queries whose horizon is not over, or whose last days are not complete in the channels
of the outcomes (`events.completeness`), give no example.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.config.definition import examples_definition
from lam_spark.consent.eligibility import eligible_customers
from lam_spark.errors import ConfigError, first_line
from lam_spark.labels.baselines import baseline_scores
from lam_spark.labels.freshness import AS_OF, EVENTS_VERSION, PERIODS, VOCABULARY
from lam_spark.labels.maturity import TargetMaturity, label_maturity
from lam_spark.labels.outcomes import query_labels
from lam_spark.labels.queries import target_queries
from lam_spark.labels.splits import (
    TEST,
    TRAIN,
    UNUSED,
    USED,
    VALIDATION,
    SplitCounts,
    require_queries,
    require_whole_days,
    split_of,
    too_few,
)
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.sequences.definitions import DEFINITION, require_definition, require_fields
from lam_spark.sequences.entries import hour_of_week
from lam_spark.sequences.time_range import require_as_of_within, time_range
from lam_spark.sequences.vocabulary import encode, numbering, vocabulary_sizes
from lam_spark.storage.dataframes import union_all
from lam_spark.storage.session_settings import configured_sql

_NO_COUNTS = SplitCounts(0, 0)


@dataclass(frozen=True)
class TargetCounts:
    """All queries of one target: the examples of each split, and those not used by reason.

    Attributes:
        used: Split -> examples.
        unused: Reason (`splits.UNUSED`) -> queries.
        too_few: Period -> why the target cannot be measured or trained there.
        outcome_channels: Channels that show the outcomes, sorted.
        complete_until: Instant up to which they are complete: later horizons are not over (ISO 8601).
    """

    used: dict[str, SplitCounts]
    unused: dict[str, int]
    too_few: dict[str, str]
    outcome_channels: tuple[str, ...]
    complete_until: str

    @property
    def queries(self) -> int:
        """All queries of the target."""
        return sum(counts.examples for counts in self.used.values()) + sum(self.unused.values())

    @property
    def sentence(self) -> str:
        """The counts in words."""
        used = ", ".join(f"{counts.examples:,} {split}" for split, counts in self.used.items())
        return f"{self.queries:,} queries = {used}, {sum(self.unused.values()):,} not used"


@dataclass(frozen=True)
class ExamplesResult(StageResult):
    """Examples by target and split.

    Attributes:
        examples: Rows written, of all targets.
        scored_target: Target that the message is about.
        targets: Target -> counts.
        periods: First day of each period (ISO 8601).
        data_end: Instant up to which there are events (ISO 8601).
        stale: Channel that is silent for too long -> the silence in words.
    """

    FORMAT: ClassVar[int] = 3

    examples: int
    scored_target: str
    targets: dict[str, TargetCounts]
    periods: dict[str, str]
    data_end: str
    stale: dict[str, str]

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.scored_target}: {self.targets[self.scored_target].sentence}"

    @property
    def details(self) -> tuple[str, ...]:
        """The counts of the other targets."""
        others = (name for name in self.targets if name != self.scored_target)
        return tuple(f"{name}: {self.targets[name].sentence}" for name in others)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Stale channels with the targets that they concern, and targets that cannot be measured in a period."""
        stale = (f"channel {name}: {silence}{self._concerned(name)}" for name, silence in self.stale.items())
        few = (
            f"{name}, {period} period: {why}"
            for name, counts in self.targets.items()
            for period, why in counts.too_few.items()
        )
        return (*stale, *few)

    def _concerned(self, channel: str) -> str:
        names = [name for name, counts in self.targets.items() if channel in counts.outcome_channels]
        return f"; labels that need it wait: {', '.join(names)}" if names else ""

    @property
    def counts(self) -> Mapping[str, int]:
        """`examples`, and per target all queries, the examples and positives by split, and the unused by reason."""
        counts = {}
        for target, of_target in self.targets.items():
            counts[f"{target}.queries"] = of_target.queries
            for split, split_counts in of_target.used.items():
                counts[f"{target}.{split}"] = split_counts.examples
                counts[f"{target}.{split}.positives"] = split_counts.positives
            counts |= {f"{target}.unused.{reason}": count for reason, count in of_target.unused.items()}
        return {**counts, "examples": self.examples}


@stage
def build_examples(ctx: RunContext) -> ExamplesResult:
    """Publish `examples` (grain: customer_key, target, query) for customers eligible for training.

    Columns: `customer_key`, `target`, `query_id`, `as_of`, `label_end`, `label` (null for `next`), `label_ids` (of
    `next`: token ids of the values that followed), `split`, `baseline_score` (null where the baseline has no value:
    lower than any number), the query's fields (token ids and numbers), `query_time` (microseconds UTC),
    `query_hour_of_week`, and the reference fields.

    Raises:
        ConfigError: A predicate does not run; or `as_of` is not after the first event, or too long after the last.
        ConsentError: No customer is eligible.
        DataQualityError: A target has no query; a horizon is not a whole number of days from 1; the events lack a
            field; or the vocabulary was made for another configuration.
    """
    config, tables = ctx.config, ctx.tables
    require_fields(tables, config)
    if tables.exists("sequences"):  # written after the vocabulary, by the same stage
        require_definition(tables, config, "sequences")
    eligible = eligible_customers(tables, ctx.cache, config.consent.training_purpose, ctx.started_at)
    ingested = tables.read("events")
    # Long after the last event every horizon would seem to be over, without any observed outcome.
    first, last = time_range(ingested)
    require_as_of_within(ctx.as_of, first, last, config.quality, config.time_zone)
    events = ingested.join(eligible, "customer_key", "left_semi")
    vocabulary = ctx.cache(tables.read("vocabulary"))
    # Cached so that the published rows are the checked rows.
    with configured_sql(ctx.spark):
        maturity = label_maturity(config, ingested, ctx.as_of)
        examples = union_all(
            _target_examples(config, name, events, vocabulary, of_target.complete_until)
            for name, of_target in maturity.targets.items()
        )
        # Encoded together: the joins with the vocabulary do not grow with the targets.
        examples = ctx.cache(encode(examples, vocabulary, config.categorical))
    counts = _count(examples)
    for name, target in config.targets.items():
        require_queries(name, target, counts.get(name, {}))
        require_whole_days(name, target, counts.get(name, {}))
    metadata = {
        DEFINITION: examples_definition(config),
        AS_OF: ctx.as_of.isoformat(),
        PERIODS: config.periods.to_metadata(),
        EVENTS_VERSION: tables.read_versions["events"],
        VOCABULARY: numbering(vocabulary, vocabulary_sizes(vocabulary, config.categorical)),
    }
    rows = tables.overwrite(examples.where(F.col("split").isin(*USED)), "examples", metadata=metadata)
    return ExamplesResult(
        examples=rows,
        scored_target=config.scoring.target,
        targets={
            name: _target_counts(config, name, counts[name], of_target)
            for name, of_target in maturity.targets.items()
        },
        periods=config.periods.to_metadata(),
        data_end=maturity.data_end.isoformat(),
        stale=maturity.stale,
    )


def _target_counts(
    config: Config, name: str, counts: Mapping[str, SplitCounts], maturity: TargetMaturity
) -> TargetCounts:
    """Counts of one target, with zeros where there are none."""
    used = {split: counts.get(split, _NO_COUNTS) for split in USED}
    kind, least = config.targets[name].kind, config.quality.min_positives
    checked = (TRAIN, VALIDATION, *((TEST,) if config.split.has_test else ()))
    few = {split: too_few(kind, used[split].examples, used[split].positives, least) for split in checked}
    return TargetCounts(
        used=used,
        unused={reason: counts.get(reason, _NO_COUNTS).examples for reason in UNUSED},
        too_few={split: why for split, why in few.items() if why},
        outcome_channels=maturity.channels,
        complete_until=maturity.complete_until.isoformat(),
    )


def _target_examples(
    config: Config, name: str, events: DataFrame, vocabulary: DataFrame, complete_until: dt.datetime
) -> DataFrame:
    """Examples of one target in all splits, with the columns of the table; categorical fields not yet encoded."""
    target = config.targets[name]
    try:
        joined, score_without_events = _labelled_queries(config, target, events, vocabulary)
    except (AnalysisException, ParseException) as error:
        raise ConfigError(f"targets.{name}: {first_line(error)}") from error
    label = F.coalesce("_label", F.lit(1.0 if target.negate else 0.0))
    label_ids = F.lit(None)
    if target.kind == "next":
        label, label_ids = F.lit(None), F.coalesce("_label", F.array().cast("array<int>"))
    return joined.select(
        "customer_key",
        F.lit(name).alias("target"),
        F.col("event_id").alias("query_id"),
        F.col("event_time").alias("as_of"),
        "label_end",
        label.cast("double").alias("label"),
        label_ids.cast("array<int>").alias("label_ids"),
        split_of(target, config.period_starts(config.periods), complete_until).alias("split"),
        F.coalesce("baseline_score", F.lit(score_without_events).cast("double")).alias("baseline_score"),
        F.unix_micros("event_time").alias("query_time"),
        hour_of_week(F.from_utc_timestamp("event_time", config.time_zone)).alias("query_hour_of_week"),
        *config.categorical,
        *(F.col(field).cast("float").alias(field) for field in config.numeric),
        *config.reference,
    )


def _labelled_queries(
    config: Config, target: TargetConfig, events: DataFrame, vocabulary: DataFrame
) -> tuple[DataFrame, float | None]:
    """Queries with `_label` and `baseline_score` (null: no outcome, no earlier event), and the score without events."""
    queries = target_queries(target, events, config.periods, config.as_of, config.time_zone).alias("query")
    labels = query_labels(target, queries, events, vocabulary)
    as_of = config.instant(config.as_of)
    scores, score_without_events = baseline_scores(
        target, queries, events, as_of, config.sequences.max_events
    )
    joined = queries.join(labels, "event_id", "left").join(scores, "event_id", "left")
    return joined, score_without_events


def _count(examples: DataFrame) -> dict[str, dict[str, SplitCounts]]:
    """Target -> split -> counts."""
    groups = examples.groupBy("target", "split").agg(
        F.count("*").alias("_examples"),
        F.count_if((F.col("label") > 0) | (F.size("label_ids") > 0)).alias("_positives"),
    )
    counts: dict[str, dict[str, SplitCounts]] = {}
    for row in groups.orderBy("target", "split").toLocalIterator():
        split_counts = SplitCounts(row["_examples"], row["_positives"])
        counts.setdefault(row["target"], {})[row["split"]] = split_counts
    return counts
