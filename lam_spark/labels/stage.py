"""Stage `examples`: point-in-time examples of every target, from the targets' SQL predicates.

An example is a query event at `as_of`. Its history is what happened before `as_of`, its label what happened
after it and no later than `label_end`; an example whose horizon is not over, or of which the last days were not
delivered (`bounds.observed_until`), is not an example.
"""

from __future__ import annotations

import datetime as dt

from pyspark.errors import AnalysisException, ArithmeticException, ParseException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.consent.eligibility import eligible
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import Run, StageResult, sql_literal, stage
from lam_spark.sequences.entries import hour_of_week
from lam_spark.sequences.freshness import AS_OF, EVENTS, NUMBERING, PERIODS, periods_of
from lam_spark.sequences.time_range import bounds_of, check_as_of, observed_until
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.sequences.vocabulary import encode, numbering, vocabulary_sizes

# The periods an example can fall into. `straddling` ones open in one period and mature in the next: no
# choice may see them, the last fit may where they matured before the test period.
TRAIN, VALIDATION, TEST, STRADDLING, UNUSED = "train", "validation", "test", "straddling", "unused"
# In place of a period, where the horizon is not a whole number of days: such examples stop the stage.
_BROKEN = "broken"


@stage
def run(run: Run) -> StageResult:
    """Publish `examples` (grain: customer_key, target, query event) for customers eligible for training.

    Columns: `customer_key, target, query_id, as_of, label_end, label` (of `next`: null), `label_ids` (of `next`: the
    token ids that follow), `split, baseline_score` (null where the rule says nothing: lower than any number), the query
    event's fields (token ids and numbers), `query_time` (microseconds UTC), `query_hour_of_week`, and the reference
    fields.

    Raises:
        ConfigError: a predicate does not run, or `as_of` lies before the first event or too long after the last one.
        DataQualityError: a period without both classes of a binary target, or without an answer of another; a
            horizon that is not a whole number of days from 1.
    """
    config = run.config
    allowed = eligible(run, config.consent.training_purpose)
    delivered = run.tables.read("events")
    # Long after the last event, every horizon would seem to be over: nothing that was seen would mean that nothing was.
    first, last = bounds_of(delivered)
    check_as_of(run, first, last)
    until = observed_until(run, delivered, last)
    events = delivered.join(allowed, "customer_key", "left_semi")
    vocabulary = run.keep(run.tables.read("vocabulary"))
    examples = None
    for name, target in config.targets.items():
        part = _examples_of(run, name, target, events, vocabulary, until)
        examples = part if examples is None else examples.unionByName(part)
    assert examples is not None  # the configuration has at least one target
    # Kept between the gate and the write: what is published has passed it.
    examples = run.keep(examples)
    counted = examples.groupBy("target", "split").agg(
        F.count("*").alias("examples"),
        F.count_if((F.col("label") > 0) | (F.size("label_ids") > 0)).alias("positives"),
        F.count_if(F.col("label_end").isNull()).alias("no_horizon"),
    )
    counts: dict[str, int] = {}
    for row in counted.orderBy("target", "split").toLocalIterator():
        counts[f"{row['target']}.{row['split']}"] = row["examples"]
        if row["split"] == UNUSED:
            counts[f"{row['target']}.{UNUSED}.no_horizon"] = row["no_horizon"]
        else:
            counts[f"{row['target']}.{row['split']}.positives"] = row["positives"]
    for name, target in config.targets.items():
        _require_whole_days(name, target, counts)
        _require_answers(name, target, counts)
    note = {
        AS_OF: run.as_of.isoformat(),
        PERIODS: periods_of(config),
        EVENTS: run.tables.read_versions["events"],
        NUMBERING: numbering(vocabulary, vocabulary_sizes(vocabulary, config)),
    }
    rows = run.tables.overwrite(examples.where(F.col("split") != UNUSED), "examples", note=note)
    counts["examples"] = rows
    scored = config.scoring.target
    parts = ", ".join(
        f"{counts.get(f'{scored}.{split}', 0):,} {split}" for split in (TRAIN, VALIDATION, STRADDLING, TEST)
    )
    facts = {"observed_until": until.isoformat()}
    return StageResult(says=f"{rows:,} examples: {parts}", counts=counts, facts=facts)


def _examples_of(
    run: Run,
    name: str,
    target: TargetConfig,
    events: DataFrame,
    vocabulary: DataFrame,
    until: dt.datetime,
) -> DataFrame:
    config = run.config
    try:
        opened = _opened(run, target, events).alias("query")
        answers = _answers(config, target, opened, events, vocabulary)
        labelled = opened.join(answers, "event_id", "left")
        scores, of_nothing = _rule_scores(run, opened, events, target)
        ruled = labelled.join(scores, "event_id", "left")
    except (AnalysisException, ParseException) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(f"targets.{name}: {first_line}") from error
    none = F.lit(1.0 if target.negate else 0.0)
    label = F.coalesce("_answer", none)
    label_ids = F.lit(None)
    if target.kind == "next":
        label, label_ids = F.lit(None), F.coalesce("_answer", F.array().cast("array<int>"))
    chosen = ruled.select(
        "customer_key",
        F.lit(name).alias("target"),
        F.col("event_id").alias("query_id"),
        F.col("event_time").alias("as_of"),
        "label_end",
        label.cast("double").alias("label"),
        label_ids.cast("array<int>").alias("label_ids"),
        _split(config, target, until).alias("split"),
        F.coalesce("baseline_score", F.lit(of_nothing).cast("double")).alias("baseline_score"),
        F.unix_micros("event_time").alias("query_time"),
        hour_of_week(F.from_utc_timestamp("event_time", config.time_zone)).alias("query_hour_of_week"),
        *config.categorical,
        *(F.col(field).cast("float").alias(field) for field in config.numeric),
        *config.reference,
    )
    return encode(chosen, vocabulary, config.categorical)


def _opened(run: Run, target: TargetConfig, events: DataFrame) -> DataFrame:
    """The target's queries, with `label_end` (grain: a query; the columns of `events`)."""
    zone = run.config.time_zone
    if target.population is not None:
        queries = events.where(F.expr(target.population))
    else:
        queries = _regular_queries(run, target, events)
    horizon, is_whole = _horizon(target)
    # Whole local days: a horizon over a clock change ends at local midnight, not an hour off.
    days = F.make_dt_interval(F.when(is_whole, horizon.cast("int")))
    local_end = F.from_utc_timestamp("query.event_time", zone) + days
    return queries.alias("query").withColumn("label_end", F.to_utc_timestamp(local_end, zone))


def _horizon(target: TargetConfig) -> tuple[Column, Column]:
    """A query's horizon in days (null: it has none), and whether that is a whole number from 1."""
    horizon = F.expr(f"CAST({target.horizon_days} AS DOUBLE)")
    return horizon, (horizon >= 1) & (horizon == F.floor(horizon))


def _regular_queries(run: Run, target: TargetConfig, events: DataFrame) -> DataFrame:
    """Empty queries at local midnight of every so many days, of who was active before.

    The days are counted back from `split.test_start`, so that one of them opens the test period. Cost: distinct
    days of activity, not events, times the days that they reach.
    """
    config, zone = run.config, run.config.time_zone
    assert target.every_days is not None  # the caller asks only then
    step = dt.timedelta(days=target.every_days)
    first, last = config.split.train_start, config.as_of
    day = config.split.test_start - (config.split.test_start - first) // step * step
    days = []
    while day <= last:
        days.append(F.lit(day))
        day += step
    seen = (
        events.where(F.expr(target.active))
        .select("customer_key", F.to_date(F.from_utc_timestamp("event_time", zone)).alias("seen"))
        .distinct()
    )

    def reached(day: Column) -> Column:
        return (day > F.col("seen")) & (F.date_diff(day, F.col("seen")) <= target.active_days)

    asked = seen.select("customer_key", F.explode(F.filter(F.array(*days), reached)).alias("day")).distinct()
    given = {
        "customer_key": F.col("customer_key"),
        # The same for all targets that ask on this day: to the model they are one query (`columns.collect_queries`).
        "event_id": F.md5(F.concat_ws("|", "customer_key", F.col("day").cast("string"))),
        "event_time": F.to_utc_timestamp("day", zone),
    }
    return asked.select(
        *(
            given.get(column.name, F.lit(None)).cast(column.dataType).alias(column.name)
            for column in events.schema.fields
        )
    )


def _answers(
    config: Config, target: TargetConfig, opened: DataFrame, events: DataFrame, vocabulary: DataFrame
) -> DataFrame:
    """`event_id, _answer` of the queries that something follows."""
    outcomes = events.where(F.expr(target.outcome_filter)).alias("outcome")
    after = F.col("outcome.event_time") > F.col("query.event_time")
    if target.every_days is not None:  # no event stands for the query: one at that very instant is after it
        after = F.col("outcome.event_time") >= F.col("query.event_time")
    follows = (
        (F.col("query.customer_key") == F.col("outcome.customer_key"))
        & after
        & (F.col("outcome.event_time") < F.col("query.label_end"))
        & F.expr(target.label)
    )
    if target.kind == "binary":
        # A semi join stops at the first hit: a customer of many events costs no pairs of events.
        hits = opened.join(outcomes, follows, "left_semi").select("event_id")
        return hits.withColumn("_answer", F.lit(0.0 if target.negate else 1.0))
    pairs = opened.join(outcomes, follows)
    if target.kind == "value":
        amount = F.expr(f"CAST({target.value} AS DOUBLE)")
        grouped = pairs.groupBy(F.col("query.event_id").alias("event_id")).agg(amount.alias("amount"))
        # A return may outweigh what was bought: less than nothing is nothing.
        return grouped.select("event_id", F.greatest("amount", F.lit(0.0)).alias("_answer"))
    named = pairs.select(
        F.col("query.event_id").alias("event_id"), F.col(f"outcome.{target.field}").alias(target.field)
    ).distinct()
    ids = encode(named, vocabulary, [target.field]).where(F.col(target.field) >= FIRST_VALUE)
    return ids.groupBy("event_id").agg(F.sort_array(F.collect_set(target.field)).alias("_answer"))


def _rule_scores(
    run: Run, opened: DataFrame, events: DataFrame, target: TargetConfig
) -> tuple[DataFrame, float | None]:
    """`event_id, baseline_score`: the simple rule over the `baseline_filter` before each query that has any; and what it says
    of no events.

    `count(*)` is counted along each customer's time. Any other rule needs pairs of queries and earlier events; they are
    bounded by `sequences.max_events` a customer: the latest so many before a query count, and queries that more of them
    follow, which no row of `sequences` reaches back to, are left out. Cost: one sort by customer and time, and
    a few times the square of that many pairs at most.
    """
    ruling = events.where(F.expr(target.baseline_filter)).where(
        F.col("event_time") < F.expr(sql_literal(run.as_of))
    )
    queries = opened.select(
        "query.customer_key", "query.event_time", F.col("query.event_id").alias("query_id")
    )
    every = ruling.withColumn("query_id", F.lit(None).cast("string")).unionByName(queries, True)
    is_query = F.col("query_id").isNotNull()
    of_customer = Window.partitionBy("customer_key")
    before = of_customer.orderBy(F.unix_micros("event_time")).rangeBetween(Window.unboundedPreceding, -1)
    placed = every.withColumn("_baseline_place", F.count_if(~is_query).over(before))
    if target.baseline == "count(*)":
        count = F.col("_baseline_place").cast("double").alias("baseline_score")
        return placed.where(is_query).select(F.col("query_id").alias("event_id"), count), 0.0
    most = run.config.sequences.max_events
    follow = F.count_if(~is_query).over(of_customer) - F.col("_baseline_place")
    placed = placed.withColumn("_baseline_events_after", follow)
    keys = placed.where(is_query & (F.col("_baseline_events_after") <= most)).select(
        "customer_key", F.col("event_time").alias("as_of"), "query_id", "_baseline_place"
    )
    latest = placed.where(~is_query & (F.col("_baseline_events_after") <= 2 * most)).drop("query_id")
    earlier = (
        (F.col("query.customer_key") == F.col("before.customer_key"))
        & (F.col("before.event_time") < F.col("query.as_of"))
        & (F.col("query._baseline_place") - F.col("before._baseline_place") <= most)
    )
    joined = (
        keys.alias("query")
        .join(latest.alias("before"), earlier)
        .select("query.query_id", "query.as_of", *(F.col(f"before.{name}") for name in events.columns))
    )
    rule = F.expr(f"CAST({target.baseline} AS DOUBLE)").alias("baseline_score")
    scored = joined.groupBy("query_id").agg(rule).withColumnRenamed("query_id", "event_id")
    return scored, _of_nothing(joined, rule)


def _of_nothing(events: DataFrame, rule: Column) -> float | None:
    """What the rule says where there is no event: a count 0, a latest time nothing."""
    try:
        row = events.where(F.lit(False)).agg(rule).first()
    except ArithmeticException:  # a share of nothing
        return None
    assert row is not None  # an aggregate without keys gives one row
    return None if row[0] is None else float(row[0])


def _split(config: Config, target: TargetConfig, until: dt.datetime) -> Column:
    split = config.split
    start, validation, test = (
        F.expr(sql_literal(config.instant(day)))
        for day in (split.train_start, split.validation_start, split.test_start)
    )
    opens, ends = F.col("event_time"), F.col("label_end")
    known = F.expr(sql_literal(until))
    horizon, is_whole = _horizon(target)
    return (
        F.when(horizon.isNotNull() & ~is_whole, _BROKEN)
        .when((opens < start) | (ends > known) | ends.isNull(), UNUSED)
        .when(opens >= test, TEST)
        .when(ends > test, UNUSED)
        .when(opens >= validation, VALIDATION)
        .when(ends > validation, STRADDLING)
        .otherwise(TRAIN)
    )


def _require_whole_days(name: str, target: TargetConfig, counts: dict[str, int]) -> None:
    broken = counts.get(f"{name}.{_BROKEN}", 0)
    if broken:
        raise DataQualityError(
            f"targets.{name}.horizon_days: expected a whole number of days from 1, or null where a query has no "
            f"horizon; {target.horizon_days!r} gives {broken:,} queries another number. Round it, or leave these "
            "queries out of the population"
        )


def _require_answers(name: str, target: TargetConfig, counts: dict[str, int]) -> None:
    for split in (TRAIN, VALIDATION):
        examples = counts.get(f"{name}.{split}", 0)
        positives = counts.get(f"{name}.{split}.positives", 0)
        most = examples if target.kind != "binary" else examples - 1
        if not 0 < positives <= most:
            needed = "both classes are" if target.kind == "binary" else "one with an answer is"
            raise DataQualityError(
                f"target {name!r} has {positives:,} positive of {examples:,} examples in the {split} "
                f"period; {needed} needed. Check its population, label and the split's dates"
            )
