"""One run: its configuration, session, tables and log, handed to every stage."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from lam_spark.config import Config
from lam_spark.runtime.log import Journal
from lam_spark.storage.tables import Tables


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Run:
    """What a stage may use.

    Attributes:
        run_id: sortable by time, unique.
        started_at: UTC; the instant at which consent statements must be effective.
        clock: tells the present instant (UTC); hours after `started_at` where a training lies between.
        held: frames that `keep` computes once; a stage's are let go at its end.
    """

    config: Config
    run_id: str
    started_at: dt.datetime
    spark: SparkSession
    tables: Tables
    journal: Journal
    clock: Callable[[], dt.datetime] = _now
    held: list[DataFrame] = field(default_factory=list)

    @property
    def as_of(self) -> dt.datetime:
        """UTC instant before which everything is visible and after which nothing is."""
        return self.config.instant(self.config.as_of)

    def keep(self, frame: DataFrame) -> DataFrame:
        """The frame, computed at most once in this stage; what does not fit into memory goes to disk."""
        self.held.append(frame.persist(StorageLevel.MEMORY_AND_DISK))
        return frame

    @contextlib.contextmanager
    def letting_go(self) -> Iterator[None]:
        """Let go at the end of what is kept inside."""
        before = len(self.held)
        try:
            yield
        finally:
            for frame in self.held[before:]:
                frame.unpersist()
            del self.held[before:]


@dataclass
class StageResult:
    """What a stage did: goes into the run record and onto the terminal.

    Attributes:
        counts: name -> number (rows, customers); everything lost is a number here.
        facts: anything else worth keeping (digests, paths, metrics).
        says: one line for people.
    """

    says: str
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


Stage = Callable[[Run], StageResult]


def stage(function: Stage) -> Stage:
    """Decorates a stage: what it keeps is let go at its end, however it ends."""

    @functools.wraps(function)
    def within(run: Run) -> StageResult:
        with run.letting_go():
            return function(run)

    return within


def sql_literal(instant: dt.datetime) -> str:
    """A UTC instant as a Spark SQL timestamp literal."""
    return f"TIMESTAMP '{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}'"
