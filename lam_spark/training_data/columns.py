"""Spark columns that carry a customer's events and queries to the packer, and their conversion to `Customer`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.sequences.tokens import FIRST_VALUE, UNKNOWN
from lam_spark.sequences.vocabulary import vocabulary_sizes
from lam_spark.training_data.aggregates import TruncatedHistory
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.packing import Customer

_MAX_COUNTED_VALUES = 16
# Columns of `sequences` about events that its arrays no longer hold.
_TRUNCATED = ("truncated_events", "first_known_at")
_NEVER = 2**63 - 1  # after every instant


def layout_of(config: Config, vocabulary: DataFrame) -> Layout:
    """The layout for a configuration and the present vocabulary."""
    return layout_with(config, vocabulary_sizes(vocabulary, config.categorical))


def layout_with(config: Config, sizes: Mapping[str, int]) -> Layout:
    """The layout for a configuration and the numbers of ids in use per categorical field."""
    last = min(sizes[config.model.count_by], FIRST_VALUE + _MAX_COUNTED_VALUES)
    embeddings = {name: config.fields[name].value_embeddings for name in config.categorical}
    return Layout(
        categorical=config.categorical,
        sizes=tuple(sizes[name] for name in config.categorical),
        numeric=config.numeric,
        count_by=config.model.count_by,
        counted_ids=tuple(range(FIRST_VALUE, last)),
        window_days=config.model.window_days,
        block_events=config.model.context_events,
        queries_per_block=config.snapshot.queries_per_block,
        targets=tuple(
            Target(name, target.kind, target.field, _value_count(target, sizes))
            for name, target in config.targets.items()
        ),
        value_embedding_dims=tuple(0 if spec is None else spec.dim for spec in embeddings.values()),
        half_life_days=config.model.half_life_days,
        who_fields=tuple(n for n in (*config.categorical, *config.numeric) if config.fields[n].role == "who"),
    )


def _value_count(target: TargetConfig, sizes: Mapping[str, int]) -> int:
    """Number of values that a `next` target predicts: the first ones, which were the most frequent.

    The vocabulary numbers values by frequency when it is built (`vocabulary.extend_vocabulary`).
    """
    if target.kind != "next":
        return 1
    return max(1, min(target.top_k, sizes[target.field] - FIRST_VALUE))


def event_columns(layout: Layout) -> list[str]:
    """Columns of `sequences` that the packer needs."""
    return [*_event_arrays(layout), *_TRUNCATED]


def _event_arrays(layout: Layout) -> list[str]:
    return ["known_at", "event_time", "hour_of_week", *layout.categorical, *layout.numeric]


def query_columns(layout: Layout) -> list[str]:
    """Array columns of `collect_queries`, one element per query."""
    return [
        "query_time",
        "query_hour_of_week",
        "query_split",
        *(f"query_{name}" for name in (*layout.categorical, *layout.numeric)),
        *_label_columns(layout),
    ]


def _label_columns(layout: Layout) -> list[str]:
    return [f"label_{target.name}" for target in layout.targets]


def with_known_ids(sequences: DataFrame, layout: Layout) -> DataFrame:
    """Sequences in which ids that the layout does not have are `UNKNOWN`; grain and columns are those of `sequences`.

    The vocabulary may have gained values since the examples were made, perhaps from their test period.
    """

    def known(name: str, size: int) -> Column:
        return F.transform(
            name, lambda token: F.when(token >= size, F.lit(UNKNOWN)).otherwise(token).cast("int")
        )

    return sequences.withColumns({name: known(name, size) for name, size in layout.ids_in_use.items()})


def truncated_rows(sequences: DataFrame, layout: Layout) -> DataFrame:
    """Customers whose row lacks events: `customer_key`, `_complete_after`; grain: a customer.

    A row holds the latest events before the build's `as_of`, so how far it reaches back from a query would reveal how
    much happened after the query. For queries after `_complete_after` (microseconds UTC) the row holds all events that
    the prediction uses, whatever followed: the last `layout.lookback` before the query's block
    (`first_counted_event`). A query preceded by fewer events than a row holds is left out, too: its prediction would
    use all events, and some are gone.
    """
    after = complete_after(layout).alias("_complete_after")
    return sequences.where("truncated_events > 0").select("customer_key", after)


def complete_after(layout: Layout) -> Column:
    """`_complete_after` of a truncated row of `sequences`; see `truncated_rows`."""
    times, length = F.col("known_at"), F.size("known_at")
    covered = F.element_at("known_at", 1) + F.lit(layout.lookback)
    # A block of events before the query starts at or after `covered`; and more events than a row holds.
    reached = F.size(F.filter(times, lambda time: time < covered)) + layout.block_events
    needed = F.greatest(reached, length - F.col("truncated_events") + 1)
    return F.coalesce(F.get(times, (needed - 1).cast("int")), F.lit(_NEVER))


def with_complete_history(examples: DataFrame, truncated: DataFrame, complete: bool = True) -> DataFrame:
    """Examples whose customer's row holds all events that the prediction uses; if `complete` is false, the others.

    For the others, the missing events would reveal how much happened later: `max_events` is too small for them. Grain
    and columns are those of `examples`; `truncated` is from `truncated_rows`.
    """
    after = F.col("_complete_after")
    is_complete = after.isNull() | (F.col("query_time") > after)
    joined = examples.join(truncated, "customer_key", "left")
    return joined.where(is_complete if complete else ~is_complete).drop("_complete_after")


def collect_queries(examples: DataFrame, layout: Layout) -> DataFrame:
    """Queries by customer: `customer_key`, `query_ids` and the arrays of `query_columns`; grain: a customer.

    Arrays are ordered by (time, id, split). Targets with the same query in the same split share an element, because the
    model predicts all targets in one pass. Cost: one shuffle by customer.

    Args:
        examples: A row per query and target, as in the table `examples`; the columns target, label, label_ids and
            split may be absent (proposals have none).
        layout: Fields and targets.
    """
    is_labelled = "target" in examples.columns
    keys = ["customer_key", "query_time", "query_id", "query_split"]
    split = F.lit(SPLIT_IDS["score"])
    if is_labelled:
        for name, number in SPLIT_IDS.items():
            split = F.when(F.col("split") == name, F.lit(number)).otherwise(split)
    values = {
        "query_hour_of_week": F.col("query_hour_of_week"),
        **{f"query_{name}": F.col(name).cast("int") for name in layout.categorical},
        **{f"query_{name}": F.col(name).cast("float") for name in layout.numeric},
    }
    by_customer = examples.withColumn("query_split", split).repartition("customer_key")
    queries = by_customer.groupBy(*keys).agg(
        *(F.any_value(column).alias(name) for name, column in values.items()),
        *(_label(target, is_labelled).alias(f"label_{target.name}") for target in layout.targets),
    )
    query = F.struct("query_time", "query_id", "query_split", *values, *_label_columns(layout))
    collected = queries.groupBy("customer_key").agg(F.sort_array(F.collect_list(query)).alias("_queries"))
    return collected.select(
        "customer_key",
        F.col("_queries.query_id").alias("query_ids"),
        *(F.col(f"_queries.{name}").alias(name) for name in query_columns(layout)),
    )


def _label(target: Target, is_labelled: bool) -> Column:
    """Label of a query over its rows: a number, for `next` a 0 or 1 per value; NaN where the target has none."""
    ids = F.sequence(F.lit(FIRST_VALUE), F.lit(FIRST_VALUE + target.values - 1))
    no_label = F.lit(float("nan")).cast("float")
    if target.kind == "next":
        no_label = F.transform(ids, lambda _: F.lit(float("nan")).cast("float"))
    if not is_labelled:
        return F.any_value(no_label)
    is_target = F.col("target") == target.name
    if target.kind == "next":
        occurred = F.first(F.when(is_target, F.col("label_ids")), ignorenulls=True)
        return F.coalesce(F.transform(ids, lambda i: F.array_contains(occurred, i).cast("float")), no_label)
    return F.coalesce(F.max(F.when(is_target, F.col("label").cast("float"))), no_label)


def customers(layout: Layout, batch: pd.DataFrame, before: int | None = None) -> Iterator[Customer]:
    """Convert rows into `Customer`s.

    Args:
        layout: Fields and targets.
        batch: Rows with the arrays of `event_columns` and `query_columns`, optionally `customer_index`.
        before: Events that are known at or after this instant (microseconds UTC) are hidden; None: all are visible.
    """
    kinds = {name: dtype for name, (dtype, _) in layout.columns.items()} | {"event_time": "int64"}
    dtypes = {
        name: kinds[name if name in kinds else f"event_{name}"]
        for name in (*_event_arrays(layout), *query_columns(layout))
    }
    no_index = np.zeros(len(batch), np.int32)
    indices = batch["customer_index"].to_numpy() if "customer_index" in batch else no_index
    truncated_events = batch["truncated_events"].to_numpy()
    first_times = batch["first_known_at"].to_numpy("datetime64[us]").astype(np.int64)
    series = {name: batch[name].to_numpy() for name in dtypes}
    for row in range(len(batch)):
        # Arrow turns a null inside an array of numbers into NaN; a customer without queries has null arrays.
        arrays = {
            name: _array(values[row], dtypes[name], layout.values_per_query.get(name))
            for name, values in series.items()
        }
        queries = {name: arrays[name] for name in query_columns(layout)}
        queries["query_row"] = np.full(len(arrays["query_time"]), -1, np.int32)
        events = {name: arrays[name] for name in _event_arrays(layout)}
        if before is not None:
            visible = int(np.searchsorted(events["known_at"], before, side="left"))
            events = {name: values[:visible] for name, values in events.items()}
        history = TruncatedHistory(int(truncated_events[row]), int(first_times[row]))
        yield Customer(events, queries, history, int(indices[row]))


def _array(values: Any, dtype: str, inner: int | None) -> Any:
    """Array (n,), or (n, inner) of an array of arrays."""
    if values is None:
        return np.zeros(0 if inner is None else (0, inner), dtype)
    return np.asarray(values, dtype) if inner is None else np.stack(values).astype(dtype)
