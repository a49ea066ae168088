"""The settings that the queries of a build need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pyspark.sql import SparkSession

_SETTINGS = {
    # Spark would sort all rows of a task by customer once it has met 128 of them. A task's events fit into
    # memory by design (`gather.Assembler`), so that they are grouped by hashing alone.
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": str(2**31 - 1),
    # No two values are alike: a dictionary is built for nothing.
    "parquet.enable.dictionary#event_time.list.element": "false",
    "parquet.enable.dictionary#event_order.list.element": "false",
}


@contextlib.contextmanager
def build_settings(spark: SparkSession) -> Iterator[None]:
    """Run the queries of a build in it; the session is as before at its end."""
    before = {key: spark.conf.get(key, None) for key in _SETTINGS}
    for key, value in _SETTINGS.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, earlier in before.items():
            if earlier is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, earlier)
