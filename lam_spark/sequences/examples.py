"""Stage `examples`: point-in-time examples of every target, from the targets' SQL predicates.

An example is a query event at `as_of`. Its history is what happened before `as_of`, its label what happened
after it and no later than `label_end`; an example whose horizon is not over is not an example.
"""

from __future__ import annotations

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.consent.eligibility import eligible
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.run import Run, StageResult, sql_literal, stage
from lam_spark.sequences.entries import hour_of_week
from lam_spark.sequences.vocabulary import encode

# The periods an example can fall into. `straddling` ones open in one period and mature in the next: no
# choice may see them, the last fit may where they matured before the test period.
TRAIN, VALIDATION, TEST, STRADDLING, UNUSED = "train", "validation", "test", "straddling", "unused"


@stage
def run(run: Run) -> StageResult:
    """Publish `examples` (grain: customer_key, target, query event) for customers eligible for training.

    Columns: `customer_key, target, query_id, as_of, label_end, label, split, rule_score`, the query
    event's fields (token ids and numbers), `query_time` (microseconds UTC), `query_hour_of_week`, and the
    reference fields.

    Raises:
        ConfigError: a predicate does not run.
        DataQualityError: a period without both classes of the scored target.
    """
    config = run.config
    allowed = eligible(run, config.consent.training_purpose)
    events = run.tables.read("events").join(allowed, "customer_key", "left_semi")
    vocabulary = run.keep(run.tables.read("vocabulary"))
    examples = None
    for name, target in config.targets.items():
        part = _examples_of(run, name, target, events, vocabulary)
        examples = part if examples is None else examples.unionByName(part)
    assert examples is not None  # the configuration has at least one target
    # Kept between the gate and the write: what is published has passed it.
    examples = run.keep(examples)
    counted = examples.groupBy("target", "split").agg(
        F.count("*").alias("examples"),
        F.sum("label").cast("int").alias("positives"),
        F.count_if(F.col("label_end").isNull()).alias("no_horizon"),
    )
    counts: dict[str, int] = {}
    for row in counted.orderBy("target", "split").toLocalIterator():
        counts[f"{row['target']}.{row['split']}"] = row["examples"]
        if row["split"] == UNUSED:
            counts[f"{row['target']}.{UNUSED}.no_horizon"] = row["no_horizon"]
        else:
            counts[f"{row['target']}.{row['split']}.positives"] = row["positives"]
    _require_both_classes(config, counts)
    rows = run.tables.overwrite(examples.where(F.col("split") != UNUSED), "examples")
    counts["examples"] = rows
    scored = config.scoring.target
    parts = ", ".join(
        f"{counts.get(f'{scored}.{split}', 0):,} {split}" for split in (TRAIN, VALIDATION, STRADDLING, TEST)
    )
    return StageResult(says=f"{rows:,} examples: {parts}", counts=counts)


def _examples_of(
    run: Run, name: str, target: TargetConfig, events: DataFrame, vocabulary: DataFrame
) -> DataFrame:
    config = run.config
    try:
        queries = events.where(F.expr(target.population)).alias("query")
        later = events.where(F.expr(target.later)).alias("later")
        horizon = F.expr(f"CAST({target.horizon_days} AS DOUBLE)")
        # Whole local days: a horizon over a clock change ends at local midnight, not an hour off.
        zone = config.time_zone
        local_end = F.from_utc_timestamp("query.event_time", zone) + F.make_dt_interval(horizon.cast("int"))
        opened = queries.withColumn("label_end", F.to_utc_timestamp(local_end, zone)).alias("query")
        follows = (
            (F.col("query.customer_key") == F.col("later.customer_key"))
            & (F.col("later.event_time") > F.col("query.event_time"))
            & (F.col("later.event_time") < F.col("query.label_end"))
            & F.expr(target.label)
        )
        # A semi join stops at the first hit: a customer of many events costs no pairs of events.
        hits = opened.join(later, follows, "left_semi").select("event_id").withColumn("hit", F.lit(1.0))
        labelled = opened.join(hits, "event_id", "left")
        ruled = labelled.join(_rule_scores(opened, events, target), "event_id", "left")
    except (AnalysisException, ParseException) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(f"targets.{name}: {first_line}") from error
    chosen = ruled.select(
        "customer_key",
        F.lit(name).alias("target"),
        F.col("event_id").alias("query_id"),
        F.col("event_time").alias("as_of"),
        "label_end",
        F.coalesce("hit", F.lit(0.0)).alias("label"),
        _split(config, run).alias("split"),
        F.coalesce("rule_score", F.lit(0.0)).alias("rule_score"),
        F.unix_micros("event_time").alias("query_time"),
        hour_of_week(F.from_utc_timestamp("event_time", zone)).alias("query_hour_of_week"),
        *config.categorical,
        *(F.col(field).cast("float").alias(field) for field in config.numeric),
        *config.reference,
    )
    return encode(chosen, vocabulary, config.categorical)


def _rule_scores(opened: DataFrame, events: DataFrame, target: TargetConfig) -> DataFrame:
    """The simple rule, over the events before each query (grain: a query event that has any).

    Cost: pairs of a customer's queries and earlier `rule_events`; pick few of them, as a rule does.
    """
    before = events.where(F.expr(target.rule_events)).alias("before")
    earlier = (F.col("query.customer_key") == F.col("before.customer_key")) & (
        F.col("before.event_time") < F.col("query.event_time")
    )
    keys = opened.select(
        F.col("query.customer_key"), F.col("query.event_time"), F.col("query.event_id").alias("query_id")
    ).alias("query")
    joined = keys.join(before, earlier).select(F.col("query.query_id").alias("query_id"), "before.*")
    scored = joined.groupBy("query_id").agg(F.expr(f"CAST({target.rule} AS DOUBLE)").alias("rule_score"))
    return scored.select(F.col("query_id").alias("event_id"), "rule_score")


def _split(config: Config, run: Run) -> Column:
    split = config.split
    start, validation, test = (
        F.expr(sql_literal(config.instant(day)))
        for day in (split.train_start, split.validation_start, split.test_start)
    )
    opens, ends = F.col("event_time"), F.col("label_end")
    now = F.expr(sql_literal(run.as_of))
    return (
        F.when((opens < start) | (ends > now) | ends.isNull(), UNUSED)
        .when(opens >= test, TEST)
        .when(ends > test, UNUSED)
        .when(opens >= validation, VALIDATION)
        .when(ends > validation, STRADDLING)
        .otherwise(TRAIN)
    )


def _require_both_classes(config: Config, counts: dict[str, int]) -> None:
    target = config.scoring.target
    for split in (TRAIN, VALIDATION):
        examples = counts.get(f"{target}.{split}", 0)
        positives = counts.get(f"{target}.{split}.positives", 0)
        if not 0 < positives < examples:
            raise DataQualityError(
                f"target {target!r} has {positives:,} positive of {examples:,} examples in the {split} "
                "period; both classes are needed. Check its population, label and the split's dates"
            )
