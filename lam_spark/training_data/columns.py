"""The Spark columns that carry a customer's events and queries to the packer, and back into `Customer`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, TargetConfig
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.sequences.vocabulary import vocabulary_sizes
from lam_spark.training_data.aggregates import TruncatedHistory
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.packing import Customer

_MOST_COUNTED_VALUES = 16
# What a row of `sequences` tells of events that its arrays no longer hold.
_TRUNCATED = ("truncated_events", "first_event_time")
_NEVER = 2**63 - 1  # no instant is later


def layout_of(config: Config, vocabulary: DataFrame) -> Layout:
    """The layout that this configuration and this vocabulary give."""
    return layout_with(config, vocabulary_sizes(vocabulary, config))


def layout_with(config: Config, sizes: Mapping[str, int]) -> Layout:
    """The layout of fields with so many ids in use."""
    last = min(sizes[config.model.count_by], FIRST_VALUE + _MOST_COUNTED_VALUES)
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
            Target(name, target.kind, target.field, _asked_values(target, sizes))
            for name, target in config.targets.items()
        ),
        value_embedding_dims=tuple(
            0 if (vectors := config.fields[name].value_embeddings) is None else vectors.dim
            for name in config.categorical
        ),
        half_life_days=config.model.half_life_days,
        who_fields=tuple(n for n in (*config.categorical, *config.numeric) if config.fields[n].role == "who"),
    )


def _asked_values(target: TargetConfig, sizes: Mapping[str, int]) -> int:
    """How many of a `next` target's values are asked for: the first ones, which were the commonest.

    The vocabulary numbers them so when it is made (`vocabulary.extend_vocabulary`).
    """
    if target.kind != "next":
        return 1
    return max(1, min(target.top_k, sizes[target.field] - FIRST_VALUE))


def event_columns(layout: Layout) -> list[str]:
    """Columns of `sequences` that the packer needs."""
    return [*_event_arrays(layout), *_TRUNCATED]


def _event_arrays(layout: Layout) -> list[str]:
    return ["event_time", "hour_of_week", *layout.categorical, *layout.numeric]


def query_columns(layout: Layout) -> list[str]:
    """Array columns that `collect_queries` adds, one entry a query."""
    return [
        "query_time",
        "query_hour_of_week",
        "query_split",
        *(f"query_{name}" for name in (*layout.categorical, *layout.numeric)),
        *_labels(layout),
    ]


def _labels(layout: Layout) -> list[str]:
    return [f"label_{target.name}" for target in layout.targets]


def cut_off(sequences: DataFrame, layout: Layout) -> DataFrame:
    """`customer_key, _answers_after` (microseconds UTC): whose row does not hold all events, and when it holds enough.

    A row holds the latest events before the build's `as_of`, so how far back it reaches from a query tells how much
    happened after the query. From `_answers_after` on, all that a query is answered from is held, however much came
    after it: the last `layout.lookback` before the block that it sees (`first_counted_event`). Queries that fewer events came
    before than a row holds are not answered either: they would be answered from all events, and not all are held.
    """
    after = answers_after(layout).alias("_answers_after")
    return sequences.where("truncated_events > 0").select("customer_key", after)


def answers_after(layout: Layout) -> Column:
    """Of a row of `sequences` that does not hold all events: as of `cut_off`."""
    times, held = F.col("event_time"), F.size("event_time")
    covered = F.element_at("event_time", 1) + F.lit(layout.lookback)
    # Events before the query: a block of them begins at or after `covered`; and more than a row holds.
    reached = F.size(F.filter(times, lambda time: time < covered)) + layout.block_events
    needed = F.greatest(reached, held - F.col("truncated_events") + 1)
    return F.coalesce(F.get(times, (needed - 1).cast("int")), F.lit(_NEVER))


def answerable(examples: DataFrame, cut: DataFrame, held: bool = True) -> DataFrame:
    """The examples whose customer's row holds what they are answered from; with `held` false, the others.

    Those others would be told by what is missing how much is still to come: `max_events` is too small for them.
    Grain and columns are those of `examples`; `cut` is what `cut_off` gives.
    """
    late = F.col("_answers_after").isNull() | (F.col("query_time") > F.col("_answers_after"))
    return examples.join(cut, "customer_key", "left").where(late if held else ~late).drop("_answers_after")


def collect_queries(examples: DataFrame, layout: Layout) -> DataFrame:
    """One row a customer: `query_ids` and the arrays of `query_columns`, ordered by (time, id, split).

    `examples` has a row a query and target, as the table of that name; the columns target, label, label_ids and
    split may be absent (a proposal has none). Targets that ask the same query in the same split share an entry: the
    model answers them all at once. Cost: one shuffle by customer.
    """
    labelled = "target" in examples.columns
    keys = ["customer_key", "query_time", "query_id", "query_split"]
    split = F.lit(SPLIT_IDS["score"])
    if labelled:
        for name, number in SPLIT_IDS.items():
            split = F.when(F.col("split") == name, F.lit(number)).otherwise(split)
    given = {
        "query_hour_of_week": F.col("query_hour_of_week"),
        **{f"query_{name}": F.col(name).cast("int") for name in layout.categorical},
        **{f"query_{name}": F.col(name).cast("float") for name in layout.numeric},
    }
    named = examples.withColumn("query_split", split).repartition("customer_key")
    queries = named.groupBy(*keys).agg(
        *(F.any_value(column).alias(name) for name, column in given.items()),
        *(_label(target, labelled).alias(f"label_{target.name}") for target in layout.targets),
    )
    query = F.struct("query_time", "query_id", "query_split", *given, *_labels(layout))
    collected = queries.groupBy("customer_key").agg(F.sort_array(F.collect_list(query)).alias("q"))
    return collected.select(
        "customer_key",
        F.col("q.query_id").alias("query_ids"),
        *(F.col(f"q.{name}").alias(name) for name in query_columns(layout)),
    )


def _label(target: Target, labelled: bool) -> Column:
    """Of a query, over its rows: a number, or for `next` a 0 or 1 a value; NaN where this question is not asked."""
    ids = F.sequence(F.lit(FIRST_VALUE), F.lit(FIRST_VALUE + target.values - 1))
    unasked = F.lit(float("nan")).cast("float")
    if target.kind == "next":
        unasked = F.transform(ids, lambda _: F.lit(float("nan")).cast("float"))
    if not labelled:
        return F.any_value(unasked)
    own = F.col("target") == target.name
    if target.kind == "next":
        happened = F.first(F.when(own, F.col("label_ids")), ignorenulls=True)
        return F.coalesce(F.transform(ids, lambda i: F.array_contains(happened, i).cast("float")), unasked)
    return F.coalesce(F.max(F.when(own, F.col("label").cast("float"))), unasked)


def customers(layout: Layout, batch: pd.DataFrame, before: int | None = None) -> Iterator[Customer]:
    """Turn rows (arrays a column) into `Customer`s; `before` (microseconds) hides later events."""
    kinds = layout.columns
    dtypes = {
        name: kinds[name if name in kinds else f"event_{name}"][0]
        for name in (*_event_arrays(layout), *query_columns(layout))
    }
    owners = (
        batch["customer_index"].to_numpy() if "customer_index" in batch else np.zeros(len(batch), np.int32)
    )
    truncated_events = batch["truncated_events"].to_numpy()
    first_times = batch["first_event_time"].to_numpy("datetime64[us]").astype(np.int64)
    series = {name: batch[name].to_numpy() for name in dtypes}
    for row in range(len(batch)):
        # Arrow gives a null number inside an array as NaN; a customer without queries has null arrays.
        arrays = {
            name: _array(values[row], dtypes[name], layout.values_per_query.get(name))
            for name, values in series.items()
        }
        asked = len(arrays["query_time"])
        queries = {name: arrays[name] for name in query_columns(layout)}
        queries["query_row"] = np.full(asked, -1, np.int32)
        events = {name: arrays[name] for name in _event_arrays(layout)}
        if before is not None:
            visible = int(np.searchsorted(events["event_time"], before, side="left"))
            events = {name: values[:visible] for name, values in events.items()}
        older = TruncatedHistory(int(truncated_events[row]), int(first_times[row]))
        yield Customer(events, queries, older, int(owners[row]))


def _array(values: Any, dtype: str, inner: int | None) -> Any:
    """(n,), or (n, inner) of an array of arrays."""
    if values is None:
        return np.zeros(0 if inner is None else (0, inner), dtype)
    return np.asarray(values, dtype) if inner is None else np.stack(values).astype(dtype)
