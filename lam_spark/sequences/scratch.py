"""What a build holds while it runs: frames computed once, and the settings that its queries need."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

_SETTINGS = {
    # Spark would sort all rows of a task by customer once it has met 128 of them. A task's events fit into
    # memory by design (`gather.Assembler`), so that they are grouped by hashing alone.
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": str(2**31 - 1),
    # No two values are alike: a dictionary is built for nothing.
    "parquet.enable.dictionary#event_time.list.element": "false",
    "parquet.enable.dictionary#event_order.list.element": "false",
}


class Scratch:
    """Context manager: `keep` frames in it, run their queries in it; all is undone at its end."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._frames: list[DataFrame] = []

    def __enter__(self) -> Self:
        self._before = {key: self._spark.conf.get(key, None) for key in _SETTINGS}
        for key, value in _SETTINGS.items():
            self._spark.conf.set(key, value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for frame in self._frames:
            frame.unpersist()
        for key, value in self._before.items():
            if value is None:
                self._spark.conf.unset(key)
            else:
                self._spark.conf.set(key, value)

    def keep(self, frame: DataFrame) -> DataFrame:
        """The frame, computed at most once; what does not fit into memory goes to disk."""
        held = frame.persist(StorageLevel.MEMORY_AND_DISK)
        self._frames.append(held)
        return held
