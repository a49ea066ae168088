"""Observes a stage while it runs: Spark's progress for people, memory of all processes for the audit."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import psutil
from pyspark.sql import SparkSession

from lam_spark.runtime.jvm import task_progress
from lam_spark.runtime.log import RunLog

# Summing the pages of a JVM takes 50 ms of a core.
_INTERVAL_SECONDS = 2.0


class Monitor:
    """Context manager around one stage.

    Attributes:
        seconds: Wall time, once the stage has ended.
        peak_memory_gib: Highest proportional set size of this process and its descendants (JVM, Python
            workers, training processes), shared pages counted once; sampled every two seconds.
    """

    def __init__(self, stage: str, spark: SparkSession, log: RunLog) -> None:
        self.stage = stage
        self.seconds = 0.0
        self.peak_memory_gib = 0.0
        self._spark = spark
        self._log = log
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
        self._log.status(None)
        self.seconds = time.monotonic() - self._started

    def _watch(self) -> None:
        while True:
            self.peak_memory_gib = max(self.peak_memory_gib, process_tree_gib())
            elapsed = time.monotonic() - self._started
            self._log.status(f"[bold]{self.stage}[/] {elapsed:.0f} s{self._spark_progress()}")
            if self._stop.wait(_INTERVAL_SECONDS):
                return

    def _spark_progress(self) -> str:
        done, total = task_progress(self._spark)
        return f" · Spark tasks {done}/{total}" if total else ""


def process_tree_gib() -> float:
    """Present memory of this process and its descendants, GiB (proportional set size)."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue  # the process has ended, or belongs to another user
    return float(total) / 2**30
