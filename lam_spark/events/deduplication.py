"""Exact deduplication: an event is identified by source, id, event_time and event_key.

A further row of an event is a duplicate. If its fields differ from those of the row that was ingested first, it is
counted as conflicting, too; the first row stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lam_spark.events.staging import TimeSpan
from lam_spark.storage.dataframes import materialize

# Status of an accepted row.
EVENT, UNRESOLVED, DUPLICATE = "event", "unresolved", "duplicate"


def with_event_id(rows: DataFrame) -> DataFrame:
    """Replace `event_key` by `event_id`, a hash over pseudonyms: no raw id can be guessed from it."""
    parts = ("source", "id_key", F.unix_micros("event_time").cast("string"), "event_key")
    event_id = F.substring(F.sha2(F.concat_ws("\x1f", *parts), 256), 1, 32)
    return rows.withColumn("event_id", event_id).drop("event_key")


def event_order() -> Column:
    """The first 60 bits of `event_id` as a number: it sorts like the text, and is cheaper to read and compare."""
    return F.conv(F.substring("event_id", 1, 15), 16, 10).cast("bigint")


def mark_duplicates(
    rows: DataFrame,
    known_tables: Mapping[str, DataFrame],
    fields: Sequence[str],
    span: TimeSpan,
    folder: Path | None,
) -> DataFrame:
    """Add `_status` (duplicate for all rows of an event but one, and for all rows of a known event; else null) and
    `_conflicting`.

    Cost: one shuffle by `event_id`; of the known events only files of the same times are read.

    Args:
        rows: New rows with `event_id`.
        known_tables: Tables of known events (`events`, `unresolved`), by name.
        fields: Declared fields.
        span: Time span of the new rows.
        folder: Where the rows are materialized if they are read more than once; None if they are already.
    """
    if known_tables and folder is not None:
        rows = materialize(rows, folder)
    content = F.xxhash64(*fields)  # equal for rows whose fields agree
    in_order = Window.partitionBy("event_id").orderBy("_content")
    marked = rows.withColumn("_content", content).withColumns(
        {"_number": F.row_number().over(in_order), "_first_content": F.first("_content").over(in_order)}
    )
    known_contents = [F.lit(None).cast("bigint")]
    for name, table in known_tables.items():
        same = table.where(span.condition()).join(rows.select("event_id"), "event_id", "left_semi")
        marked = marked.join(same.select("event_id", content.alias(f"_in_{name}")), "event_id", "left")
        known_contents.append(F.col(f"_in_{name}"))
    known_content = F.coalesce(*known_contents)
    is_duplicate = (F.col("_number") > 1) | known_content.isNotNull()
    return marked.withColumns(
        {
            "_status": F.when(is_duplicate, DUPLICATE),
            "_conflicting": is_duplicate & (F.col("_content") != F.coalesce(known_content, "_first_content")),
        }
    )
