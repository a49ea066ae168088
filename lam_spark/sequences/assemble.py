"""Stage `sequences`: the vocabulary, and one row a consenting customer with arrays a field.

Cost: the strings are replaced by ids before the one shuffle (by customer); time is linear in events.
A task holds the events of one customer at a time and no more than `max_events` of them leave it.
"""

from __future__ import annotations

import datetime as dt

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.consent.eligibility import eligible
from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.run import Run, StageResult, sql_literal
from lam_spark.sequences.vocabulary import encode, extend_vocabulary


def run(run: Run) -> StageResult:
    """Publish `vocabulary` and `sequences`.

    `sequences`, grain: a customer who is eligible for training or for contact. Columns: `customer_key,
    seq_len (events), events_seen, event_time ARRAY<BIGINT> (microseconds UTC), hour_of_week ARRAY<INT>
    (0 = Sunday 00:00 local), one array a modelled field, last_event_time, seq_hash`, ordered by
    (event_time, event_id), only events before `as_of`.

    Raises:
        ConfigError: `as_of` lies before the first event or too long after the last one.
        ConsentError: nobody is eligible.
    """
    config = run.config
    events = run.tables.read("events")
    first, last = _check_as_of(run, events)
    training = eligible(run, config.consent.training_purpose)
    contact = eligible(run, config.consent.contact_purpose)
    cut = min(run.as_of, config.instant(config.split.test_start))
    known = events.where(F.col("event_time") < F.expr(sql_literal(cut))).join(
        training, "customer_key", "left_semi"
    )
    added = extend_vocabulary(run, known)
    visible = events.where(F.col("event_time") < F.expr(sql_literal(run.as_of)))
    allowed = visible.join(training.union(contact).distinct(), "customer_key", "left_semi")
    if allowed.isEmpty():
        raise DataQualityError(
            f"no eligible customer has an event before {config.as_of}: nothing to learn from"
        )
    rows = run.tables.overwrite(assemble(allowed, run.tables.read("vocabulary"), config), "sequences")
    totals = (
        run.tables.read("sequences").agg(F.sum("events_seen"), F.sum("seq_len"), F.max("seq_len")).first()
    )
    assert totals is not None  # an aggregate without keys gives one row
    seen, kept, longest = (int(value) for value in totals)
    return StageResult(
        says=f"{rows:,} sequences of {kept:,} events, the longest {longest:,}; {added:,} new vocabulary entries",
        counts={
            "sequences": rows,
            "events_in_sequences": kept,
            "events_truncated": seen - kept,
            "longest_sequence": longest,
            "vocabulary_added": added,
        },
        facts={"first_event": first.isoformat(), "last_event": last.isoformat()},
    )


def assemble(events: DataFrame, vocabulary: DataFrame, config: Config) -> DataFrame:
    """One row a customer from events in any order; the result does not depend on their order."""
    encoded = encode(events, vocabulary, config.categorical)
    local = F.from_utc_timestamp("event_time", config.time_zone)
    entry = F.struct(
        F.unix_micros("event_time").alias("event_time"),
        "event_id",
        hour_of_week(local).alias("hour_of_week"),
        *(F.col(name).cast("int").alias(name) for name in config.categorical),
        *(F.col(name).cast("float").alias(name) for name in config.numeric),
    )
    limit = config.sequences.max_events
    ordered = (
        encoded.select("customer_key", entry.alias("entry"))
        .groupBy("customer_key")
        .agg(F.sort_array(F.collect_list("entry")).alias("all_entries"))
        .select(
            "customer_key",
            F.size("all_entries").alias("events_seen"),
            F.expr(f"slice(all_entries, greatest(size(all_entries) - {limit}, 0) + 1, {limit})").alias(
                "entries"
            ),
        )
    )
    arrays = ["event_time", "hour_of_week", *config.categorical, *config.numeric]
    columns = [F.col(f"entries.{name}").alias(name) for name in arrays]
    return ordered.select(
        "customer_key",
        F.size("entries").alias("seq_len"),
        "events_seen",
        *columns,
        F.timestamp_micros(F.element_at("entries.event_time", -1)).alias("last_event_time"),
        F.xxhash64("entries").alias("seq_hash"),
    )


def hour_of_week(local: Column) -> Column:
    """0 for Sunday 00:00 to 167 for Saturday 23:00, from a local wall-clock timestamp."""
    return ((F.dayofweek(local) - 1) * 24 + F.hour(local)).cast("int")


def _check_as_of(run: Run, events: DataFrame) -> tuple[dt.datetime, dt.datetime]:
    bounds = events.agg(
        F.date_format(F.min("event_time"), "yyyy-MM-dd'T'HH:mm:ssXXX"),
        F.date_format(F.max("event_time"), "yyyy-MM-dd'T'HH:mm:ssXXX"),
    ).first()
    if bounds is None or bounds[0] is None:
        raise DataQualityError("the table events is empty: run the stage 'ingest' over inputs that have rows")
    first, last = (dt.datetime.fromisoformat(value) for value in bounds)
    stale = dt.timedelta(days=run.config.quality.max_staleness_days)
    if not first < run.as_of <= last + stale:
        raise ConfigError(
            f"as_of {run.config.as_of} is outside the data: events run from {first:%Y-%m-%d} to "
            f"{last:%Y-%m-%d} (UTC), and as_of may be at most quality.max_staleness_days = {stale.days} days "
            "after the last"
        )
    return first, last
