"""The Spark columns that carry a customer's events and queries to the packer, and back into `Customer`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.dataset.aggregates import Older
from lam_spark.dataset.layout import SPLIT_IDS, Layout
from lam_spark.dataset.packing import Customer
from lam_spark.sequences.vocabulary import FIRST_VALUE, vocabulary_sizes

_MOST_COUNTED_VALUES = 16
# What a row of `sequences` tells of events that its arrays no longer hold.
_OLDER = ("older_events", "first_event_time")


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
        targets=tuple(config.targets),
    )


def event_columns(layout: Layout) -> list[str]:
    """Columns of `sequences` that the packer needs."""
    return [*_event_arrays(layout), *_OLDER]


def _event_arrays(layout: Layout) -> list[str]:
    return ["event_time", "hour_of_week", *layout.categorical, *layout.numeric]


def query_columns(layout: Layout) -> list[str]:
    """Array columns that `collect_queries` adds, one entry a query."""
    return [
        "query_time",
        "query_hour_of_week",
        "query_split",
        *(f"query_{name}" for name in (*layout.categorical, *layout.numeric)),
        *(f"label_{name}" for name in layout.targets),
    ]


def cut_off(sequences: DataFrame) -> DataFrame:
    """`customer_key, held_from` (microseconds UTC): whose row does not hold all events, and where it starts."""
    start = F.element_at("event_time", 1).alias("held_from")
    return sequences.where("older_events > 0").select("customer_key", start)


def answerable(examples: DataFrame, cut: DataFrame, held: bool = True) -> DataFrame:
    """The examples that lie after the start of what the customer's row holds; with `held` false, the others.

    Those others would see nothing where in truth much has happened: `max_events` is too small for them. Grain
    and columns are those of `examples`; `cut` is what `cut_off` gives.
    """
    late = F.col("held_from").isNull() | (F.col("query_time") > F.col("held_from"))
    return examples.join(cut, "customer_key", "left").where(late if held else ~late).drop("held_from")


def collect_queries(examples: DataFrame, layout: Layout) -> DataFrame:
    """One row a customer: `query_ids` and the arrays of `query_columns`, ordered by (time, target, id).

    `examples` has a row a query, as the table of that name; the columns target, label and split may be
    absent (a proposal has none).
    """
    present = set(examples.columns)

    def label(target: str) -> Column:
        if "label" not in present:
            return F.lit(float("nan")).cast("float")
        return F.when(F.col("target") == target, F.col("label")).otherwise(float("nan")).cast("float")

    split = F.lit(SPLIT_IDS["score"])
    if "split" in present:
        for name, number in SPLIT_IDS.items():
            split = F.when(F.col("split") == name, F.lit(number)).otherwise(split)
    query = F.struct(
        "query_time",
        (F.col("target") if "target" in present else F.lit("")).alias("target"),
        "query_id",
        F.col("query_hour_of_week"),
        split.alias("query_split"),
        *(F.col(name).cast("int").alias(f"query_{name}") for name in layout.categorical),
        *(F.col(name).cast("float").alias(f"query_{name}") for name in layout.numeric),
        *(label(name).alias(f"label_{name}") for name in layout.targets),
    )
    collected = examples.groupBy("customer_key").agg(F.sort_array(F.collect_list(query)).alias("q"))
    return collected.select(
        "customer_key",
        F.col("q.query_id").alias("query_ids"),
        *(F.col(f"q.{name}").alias(name) for name in query_columns(layout)),
    )


def customers(layout: Layout, batch: pd.DataFrame, before: int | None = None) -> Iterator[Customer]:
    """Turn rows (arrays a column) into `Customer`s; `before` (microseconds) hides later events."""
    kinds = layout.columns
    dtypes = {
        name: kinds[name if name in kinds else f"event_{name}"][0]
        for name in (*_event_arrays(layout), *query_columns(layout))
    }
    older_events = batch["older_events"].to_numpy()
    first_times = batch["first_event_time"].to_numpy("datetime64[us]").astype(np.int64)
    series = {name: batch[name].to_numpy() for name in dtypes}
    for row in range(len(batch)):
        # Arrow gives a null number inside an array as NaN; a customer without queries has null arrays.
        arrays = {name: _array(values[row], dtypes[name]) for name, values in series.items()}
        asked = len(arrays["query_time"])
        queries = {name: arrays[name] for name in query_columns(layout)}
        queries["query_row"] = np.full(asked, -1, np.int32)
        events = {name: arrays[name] for name in _event_arrays(layout)}
        if before is not None:
            visible = int(np.searchsorted(events["event_time"], before, side="left"))
            events = {name: values[:visible] for name, values in events.items()}
        yield Customer(events, queries, Older(int(older_events[row]), int(first_times[row])))


def _array(values: Any, dtype: str) -> Any:
    return np.zeros(0, dtype) if values is None else np.asarray(values, dtype=dtype)
