"""The vocabulary: (field, value) -> token id, append-only, and the encoding of events by it.

Ids 0 padding, 1 unknown, 2 missing are the same in every field; values follow from 3. An id never changes,
so a sequence stays valid while the vocabulary grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.runtime.context import Run
from lam_spark.sequences.tokens import FIRST_VALUE, MISSING, UNKNOWN
from lam_spark.storage.dataframes import local_frame


def count_values(events: DataFrame, config: Config, weight: Column | None = None) -> DataFrame:
    """`field, value, count`: how often each value of each categorical field occurs; grain: (field, value).

    `weight` is what an event counts for (1 where not given). Only distinct values are shuffled.
    """
    pairs = F.explode(
        F.array(
            *(F.struct(F.lit(name).alias("field"), F.col(name).alias("value")) for name in config.categorical)
        )
    )
    counted = F.count("*") if weight is None else F.sum("weight")
    return (
        events.select(pairs.alias("pair"), *([] if weight is None else [weight.alias("weight")]))
        .select("pair.*", *([] if weight is None else ["weight"]))
        .where("value IS NOT NULL")
        .groupBy("field", "value")
        .agg(counted.alias("count"))
    )


def extend_vocabulary(run: Run, counted: DataFrame) -> int:
    """Append the values that are frequent enough and not there yet; returns how many.

    `counted` is what `count_values` gives of the events that the vocabulary may know of: consented, and
    before the cut, or the vocabulary itself would leak the future. Ties in frequency are broken by value, so
    that a rebuild gives the same ids. Cost: distinct values, not events.
    """
    frequent = (
        counted.join(F.broadcast(_limits(run)), "field")
        .withColumn(
            "rank", F.row_number().over(Window.partitionBy("field").orderBy(F.desc("count"), "value"))
        )
        .where((F.col("count") >= F.col("min_count")) & (F.col("rank") <= F.col("max_values")))
    )
    if run.tables.exists("vocabulary"):
        known = run.tables.read("vocabulary")
        top = known.groupBy("field").agg(F.max("token_id").alias("top"))
        fresh = frequent.join(
            F.broadcast(known.select("field", "value")), ["field", "value"], "left_anti"
        ).join(F.broadcast(top), "field", "left")
    else:
        fresh = frequent.withColumn("top", F.lit(None).cast("int"))
    order = Window.partitionBy("field").orderBy(F.desc("count"), "value")
    last = F.coalesce("top", F.lit(FIRST_VALUE - 1))
    rows = fresh.select(
        "field",
        "value",
        (last + F.row_number().over(order)).cast("int").alias("token_id"),
        F.col("count").alias("count_when_added"),
    )
    return run.tables.insert_new(rows, "vocabulary", ["field", "value"])


def top_ids(vocabulary: DataFrame) -> dict[str, int]:
    """The highest token id of each field that has one."""
    highest = vocabulary.groupBy("field").agg(F.max("token_id").alias("top"))
    return {row["field"]: int(row["top"]) for row in highest.toLocalIterator()}


def encode(frame: DataFrame, vocabulary: DataFrame, fields: Iterable[str]) -> DataFrame:
    """Replace each categorical column by its token ids (int, never null).

    Grain and order are those of `frame`. Each field's part of the vocabulary is broadcast.
    """
    columns = frame.columns
    for name in fields:
        ids = vocabulary.where(F.col("field") == name).select(
            F.xxhash64("value").alias("_value_hash"),
            F.col("value").alias("_known_value"),
            F.col("token_id").alias("_token_id"),
        )
        same = (F.xxhash64(name) == F.col("_value_hash")) & same_text(F.col(name), F.col("_known_value"))
        token = F.when(F.col(name).isNull(), F.lit(MISSING)).otherwise(
            F.coalesce("_token_id", F.lit(UNKNOWN))
        )
        frame = frame.join(F.broadcast(ids), same, "left").withColumn(name, token).select(*columns)
    return frame


def same_text(left: Column, right: Column) -> Column:
    """`left = right`, for a join on a hash of the text: numbers are looked up faster than texts.

    The texts decide. Written as an equality, Spark would make them part of the key.
    """
    return (F.octet_length(left) == F.octet_length(right)) & left.startswith(right)


def vocabulary_sizes(vocabulary: DataFrame, config: Config) -> dict[str, int]:
    """Ids in use a categorical field (the embedding's rows): the highest token id plus one."""
    top = top_ids(vocabulary)
    return {name: top.get(name, FIRST_VALUE - 1) + 1 for name in config.categorical}


def vocabulary_digest(vocabulary: DataFrame, sizes: Mapping[str, int]) -> str:
    """sha256 (hex) of the values that the first ids stand for, so many of each field (`vocabulary_sizes`).

    A vocabulary only grows: as long as it is the same one, so is this digest, whatever came since. Another one numbers
    the values otherwise, although fields and sizes may be the same. Cost: 64 bytes an id in one task.
    """
    in_use = reduce(
        or_, ((F.col("field") == name) & (F.col("token_id") < size) for name, size in sizes.items())
    )
    entry = F.concat_ws("\0", "field", F.col("token_id").cast("string"), "value")
    entries = F.sort_array(F.collect_list(F.sha2(entry, 256)))
    row = vocabulary.where(in_use).agg(F.sha2(F.concat_ws("", entries), 256)).first()
    assert row is not None  # an aggregate without keys gives one row
    return str(row[0])


def numbering(vocabulary: DataFrame, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a table that holds token ids notes of their vocabulary, for `is_numbered_by`."""
    return {"sizes": dict(sizes), "sha256": vocabulary_digest(vocabulary, sizes)}


def is_numbered_by(vocabulary: DataFrame, noted: Mapping[str, Any] | None) -> bool:
    """Whether ids that were given by the vocabulary that `numbering` noted stand for the same in this one."""
    return noted is not None and vocabulary_digest(vocabulary, noted["sizes"]) == noted["sha256"]


def _limits(run: Run) -> DataFrame:
    rows = [
        (name, run.config.fields[name].min_count, run.config.fields[name].max_values)
        for name in run.config.categorical
    ]
    return local_frame(run.spark, rows, "field STRING, min_count INT, max_values INT")
