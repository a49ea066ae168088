"""The vocabulary: (field, value) -> token id, append-only, and the encoding of events by it.

Ids 0 padding, 1 unknown and 2 missing are the same in every field; values start at 3. An id never changes, so
that sequences stay valid while the vocabulary grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.config import FieldConfig
from lam_spark.sequences.tokens import FIRST_VALUE, MISSING, UNKNOWN
from lam_spark.storage.dataframes import local_frame, one_row
from lam_spark.storage.tables.store import Tables


def count_values(events: DataFrame, categorical: Sequence[str], weight: Column | None = None) -> DataFrame:
    """Count how often each value of each categorical field occurs.

    Grain: (field, value). Only distinct values are shuffled.

    Args:
        events: Events with the categorical columns.
        categorical: Names of the categorical fields.
        weight: What an event counts for; None: 1.

    Returns:
        Columns `field`, `value`, `count`.
    """
    pairs = F.explode(
        F.array(*(F.struct(F.lit(name).alias("field"), F.col(name).alias("value")) for name in categorical))
    )
    count = F.count("*") if weight is None else F.sum("_weight")
    return (
        events.select(pairs.alias("_pair"), *([] if weight is None else [weight.alias("_weight")]))
        .select("_pair.*", *([] if weight is None else ["_weight"]))
        .where("value IS NOT NULL")
        .groupBy("field", "value")
        .agg(count.alias("count"))
    )


def extend_vocabulary(tables: Tables, fields: Mapping[str, FieldConfig], value_counts: DataFrame) -> int:
    """Append the values that are frequent enough and not in the vocabulary yet; returns how many.

    Ties in frequency are broken by value, so that a rebuild gives the same ids. Cost: distinct values, not events.

    Args:
        tables: Tables of the workspace.
        fields: Declared fields, with `min_count` and `max_values`.
        value_counts: From `count_values`, of events that the vocabulary may use: of customers eligible for
            training, known before the cutoff. Later ones would leak the future through the vocabulary.
    """
    order = Window.partitionBy("field").orderBy(F.desc("count"), "value")
    frequent = (
        value_counts.join(F.broadcast(_limits(tables, fields)), "field")
        .withColumn("_rank", F.row_number().over(order))
        .where((F.col("count") >= F.col("_min_count")) & (F.col("_rank") <= F.col("_max_values")))
    )
    vocabulary = tables.read_if_exists("vocabulary")
    if vocabulary is None:
        fresh = frequent.withColumn("_top", F.lit(None).cast("int"))
    else:
        top = vocabulary.groupBy("field").agg(F.max("token_id").alias("_top"))
        pairs = F.broadcast(vocabulary.select("field", "value"))
        fresh = frequent.join(pairs, ["field", "value"], "left_anti").join(F.broadcast(top), "field", "left")
    last = F.coalesce("_top", F.lit(FIRST_VALUE - 1))
    rows = fresh.select(
        "field",
        "value",
        (last + F.row_number().over(order)).cast("int").alias("token_id"),
        F.col("count").alias("count_when_added"),
    )
    return tables.insert_missing(rows, "vocabulary", ["field", "value"])


def top_ids(vocabulary: DataFrame) -> dict[str, int]:
    """Highest token id of each field that has one."""
    highest = vocabulary.groupBy("field").agg(F.max("token_id").alias("_top"))
    return {row["field"]: int(row["_top"]) for row in highest.toLocalIterator()}


def encode(frame: DataFrame, vocabulary: DataFrame, fields: Iterable[str]) -> DataFrame:
    """Replace each of the categorical columns by its token ids (int, never null).

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
    """`left = right`, for a join whose key is a hash of the text: numbers are faster to look up than texts.

    Spark would make a plain equality part of the join key; this condition only confirms the hash.
    """
    return (F.octet_length(left) == F.octet_length(right)) & left.startswith(right)


def vocabulary_sizes(vocabulary: DataFrame, categorical: Iterable[str]) -> dict[str, int]:
    """Ids in use per categorical field (rows of its embedding): the highest token id plus one."""
    top = top_ids(vocabulary)
    return {name: top.get(name, FIRST_VALUE - 1) + 1 for name in categorical}


def vocabulary_digest(vocabulary: DataFrame, sizes: Mapping[str, int]) -> str:
    """sha256 (hex) of the values behind the first ids of each field, with the numbers of ids in `sizes`.

    The digest does not change while the same vocabulary grows. Another vocabulary numbers values differently even
    where fields and sizes are equal. Cost: 64 bytes per id in one task.
    """
    in_use = reduce(
        or_, ((F.col("field") == name) & (F.col("token_id") < size) for name, size in sizes.items())
    )
    entry = F.concat_ws("\0", "field", F.col("token_id").cast("string"), "value")
    entries = F.sort_array(F.collect_list(F.sha2(entry, 256)))
    return str(one_row(vocabulary.where(in_use).agg(F.sha2(F.concat_ws("", entries), 256)))[0])


def numbering(vocabulary: DataFrame, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Commit metadata about the vocabulary of a table that holds token ids; checked by `is_numbered_by`."""
    return {"sizes": dict(sizes), "sha256": vocabulary_digest(vocabulary, sizes)}


def is_numbered_by(vocabulary: DataFrame, recorded: Mapping[str, Any] | None) -> bool:
    """Whether token ids of the vocabulary that `numbering` recorded mean the same in this one."""
    return recorded is not None and vocabulary_digest(vocabulary, recorded["sizes"]) == recorded["sha256"]


def _limits(tables: Tables, fields: Mapping[str, FieldConfig]) -> DataFrame:
    rows = [
        (name, field.min_count, field.max_values)
        for name, field in fields.items()
        if field.kind == "categorical"
    ]
    return local_frame(tables.spark, rows, "field STRING, _min_count INT, _max_values INT")
