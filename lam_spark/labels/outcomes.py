"""Labels of queries: what the customer did between the query and the end of its horizon, whenever it became known."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import TargetConfig
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.sequences.vocabulary import encode


def query_labels(
    target: TargetConfig, queries: DataFrame, events: DataFrame, vocabulary: DataFrame
) -> DataFrame:
    """Labels of the queries that an outcome follows; grain: such a query.

    Args:
        target: Picks the outcomes and defines the label.
        queries: From `target_queries` (alias `query`).
        events: Events of customers eligible for training.
        vocabulary: Token ids of the values of a `next` target.

    Returns:
        Columns `event_id` and `_label`: a number, for `next` the sorted token ids of the values.
    """
    outcomes = events.where(F.expr(target.outcome_filter)).alias("outcome")
    after = F.col("outcome.event_time") > F.col("query.event_time")
    if target.every_days is not None:  # the query is no event itself: an event at its instant follows it
        after = F.col("outcome.event_time") >= F.col("query.event_time")
    follows = (
        (F.col("query.customer_key") == F.col("outcome.customer_key"))
        & after
        & (F.col("outcome.event_time") < F.col("query.label_end"))
        & F.expr(target.label)
    )
    if target.kind == "binary":
        # A semi join stops at the first match: a very long history does not multiply pairs of events.
        matches = queries.join(outcomes, follows, "left_semi").select("event_id")
        return matches.withColumn("_label", F.lit(0.0 if target.negate else 1.0))
    pairs = queries.join(outcomes, follows)
    if target.kind == "value":
        amount = F.expr(f"CAST({target.value} AS DOUBLE)")
        grouped = pairs.groupBy(F.col("query.event_id").alias("event_id")).agg(amount.alias("_amount"))
        # Returns may exceed purchases: a negative sum counts as 0.
        return grouped.select("event_id", F.greatest("_amount", F.lit(0.0)).alias("_label"))
    values = pairs.select(
        F.col("query.event_id").alias("event_id"), F.col(f"outcome.{target.field}").alias(target.field)
    ).distinct()
    ids = encode(values, vocabulary, [target.field]).where(F.col(target.field) >= FIRST_VALUE)
    return ids.groupBy("event_id").agg(F.sort_array(F.collect_set(target.field)).alias("_label"))
