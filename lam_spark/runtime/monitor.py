"""Watches a stage while it runs: Spark's progress for people, memory of all processes for the record."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import psutil
from pyspark.sql import SparkSession

from lam_spark.runtime.log import Journal

# Summing the pages of a JVM takes a twentieth of a second of a core: not more often than this.
_INTERVAL_SECONDS = 2.0


class Monitor:
    """Context manager around one stage.

    Attributes:
        seconds: wall time once the stage ended.
        peak_memory_gib: highest proportional set size of this process and all below it (JVM, Python
            workers, training ranks), shared pages counted once; sampled every two seconds.
    """

    def __init__(self, stage: str, spark: SparkSession, journal: Journal) -> None:
        self.stage = stage
        self.seconds = 0.0
        self.peak_memory_gib = 0.0
        self._spark = spark
        self._journal = journal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"monitor-{stage}", daemon=True)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._journal.live(None)
        self.seconds = time.monotonic() - self._started

    def _watch(self) -> None:
        while True:
            self.peak_memory_gib = max(self.peak_memory_gib, process_tree_gib())
            elapsed = time.monotonic() - self._started
            self._journal.live(f"[bold]{self.stage}[/] {elapsed:.0f} s{self._spark_progress()}")
            if self._stop.wait(_INTERVAL_SECONDS):
                return

    def _spark_progress(self) -> str:
        tracker = self._spark.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        done = sum(stage.numCompletedTasks for stage in stages if stage)
        total = sum(stage.numTasks for stage in stages if stage)
        return f" · Spark tasks {done}/{total}" if total else ""


def process_tree_gib() -> float:
    """Memory of this process and its descendants now, GiB (proportional set size)."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue  # it ended while we looked, or is not ours to look into
    return float(total) / 2**30
