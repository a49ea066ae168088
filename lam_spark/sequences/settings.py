"""The settings that the queries of a build need (`lam_spark.storage.settings.session_settings`)."""

from __future__ import annotations

BUILD_SETTINGS = {
    # Spark would sort all rows of a task by customer once it has met 128 of them. A task's events fit into
    # memory by design (`gather.Assembler`), so that they are grouped by hashing alone.
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": str(2**31 - 1),
    # No two values are alike: a dictionary is built for nothing.
    "parquet.enable.dictionary#event_time.list.element": "false",
    "parquet.enable.dictionary#event_order.list.element": "false",
}
