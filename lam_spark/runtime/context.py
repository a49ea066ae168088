"""The context of one run: configuration, session, tables, log; handed to the entry function of every stage."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pyspark.sql import SparkSession

from lam_spark.config import Config
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.results import StageResult
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.files import private_files
from lam_spark.storage.tables.store import Tables

Result = TypeVar("Result", bound=StageResult)


def utc_now() -> dt.datetime:
    """The current instant (UTC)."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class RunContext:
    """Context of a stage's entry function; helpers get only the parts that they need.

    Attributes:
        run_id: Unique, sortable by time.
        started_at: Start of the run (UTC): consent statements must be effective by then.
        clock: Returns the current instant (UTC), which is hours after `started_at` after a training.
        cache: DataFrames that are computed once; a stage's are released at its end.
    """

    config: Config
    run_id: str
    started_at: dt.datetime
    spark: SparkSession
    tables: Tables
    log: RunLog
    clock: Callable[[], dt.datetime] = utc_now
    cache: FrameCache = field(default_factory=FrameCache)

    @property
    def as_of(self) -> dt.datetime:
        """UTC instant before which everything is visible and after which nothing is."""
        return self.config.instant(self.config.as_of)


def stage(function: Callable[[RunContext], Result]) -> Callable[[RunContext], Result]:
    """Decorate the entry function of a stage: its files are private, and frames that it cached are released."""

    @functools.wraps(function)
    def in_scope(ctx: RunContext) -> Result:
        with private_files(ctx.config.file_permissions), ctx.cache.scope():
            return function(ctx)

    return in_scope
