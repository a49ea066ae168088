"""One run: its configuration, session, tables and log, handed to every stage."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession

from lam_spark.config import Config
from lam_spark.journal import Journal
from lam_spark.tables import Tables


@dataclass(frozen=True)
class Run:
    """What a stage may use.

    Attributes:
        run_id: sortable by time, unique.
        started_at: UTC; the instant at which consent statements must be effective.
    """

    config: Config
    run_id: str
    started_at: dt.datetime
    spark: SparkSession
    tables: Tables
    journal: Journal

    @property
    def as_of(self) -> dt.datetime:
        """UTC instant before which everything is visible and after which nothing is."""
        return self.config.instant(self.config.as_of)


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


def sql_literal(instant: dt.datetime) -> str:
    """A UTC instant as a Spark SQL timestamp literal."""
    return f"TIMESTAMP '{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}'"
