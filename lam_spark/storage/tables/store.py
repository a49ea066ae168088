"""Reading and writing Delta tables: every read is pinned to a version, every write is one atomic commit.

The versions read and written are remembered, so that the audit can name the versions of everything. A stage that
dies leaves the last good version readable.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConcurrentRunError, ConfigError, DataQualityError, LamSparkError, first_line
from lam_spark.storage.dataframes import union_all
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.log import OwnCommit, TableLog
from lam_spark.storage.tables.registry import TABLES

# Message of jobs that stop before they publish a score or embedding that is not a number (`raise_error`).
NOT_A_NUMBER = "the model's output is not a number: the model or its inputs are damaged"

# Error condition where a version is in the log but VACUUM has removed its files.
FILES_VACUUMED = "FAILED_READ_FILE.FILE_NOT_EXIST"

# By default Delta skips the commit of a write without rows.
_SKIP_EMPTY_COMMITS = "spark.databricks.delta.skipRecordingEmptyCommits"
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"

# Delta's errors where another run committed between our read and our write.
_CONFLICTS = (
    "ConcurrentAppendException",
    "ConcurrentDeleteReadException",
    "ConcurrentDeleteDeleteException",
    "ConcurrentTransactionException",
    "ConcurrentWriteException",
    "MetadataChangedException",
    "ProtocolChangedException",
    "DELTA_CONCURRENT",
    "DELTA_METADATA_CHANGED",
)


@dataclass
class Tables:
    """The tables of one workspace.

    Attributes:
        spark: Session with Delta.
        folder: Folder that holds the tables; every executor must see it.
        read_versions: Table -> version last read.
        written_versions: Table -> version last written.
    """

    spark: SparkSession
    folder: Path
    read_versions: dict[str, int] = field(default_factory=dict)
    written_versions: dict[str, int] = field(default_factory=dict)

    def path(self, name: str) -> str:
        """Folder of a declared table."""
        if name not in TABLES:
            raise ConfigError(f"no table {name!r}; the tables are {', '.join(TABLES)}")
        return str(self.folder / name)

    def log(self, name: str) -> TableLog:
        """Transaction log of a declared table."""
        return TableLog(Path(self.path(name)))

    def exists(self, name: str) -> bool:
        """Whether the table was ever written."""
        return self.log(name).newest() is not None

    def version(self, name: str) -> int:
        """The newest version.

        Raises:
            ConfigError: The table was never written; the message names the stage that writes it.
        """
        version = self.log(name).newest()
        if version is None:
            raise ConfigError(
                f"expected a table {name!r} at {self.path(name)}, found none: "
                f"run the stage {TABLES[name].writer!r} first"
            )
        return version

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """Read one version, by default the newest, and remember it."""
        pinned = self.version(name) if version is None else version
        self.read_versions[name] = pinned
        return self.spark.read.format("delta").option("versionAsOf", pinned).load(self.path(name))

    def read_if_exists(self, name: str) -> DataFrame | None:
        """The newest version; None if the table was never written."""
        return self.read(name) if self.exists(name) else None

    def overwrite(
        self,
        frame: DataFrame,
        name: str,
        where: str | None = None,
        partition_by: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Replace the table, or only the rows that `where` selects, in one commit.

        Args:
            frame: The new rows.
            name: Name of the table.
            where: SQL condition that all new rows meet.
            partition_by: Partition columns.
            metadata: Stored with the commit (`commit_metadata`).

        Returns:
            Rows written. A rerun replaces the same rows by the same rows.
        """
        writer = frame.write.format("delta").mode("overwrite").options(**self._properties(name))
        if partition_by:
            writer = writer.partitionBy(*partition_by)
        replaces_all = where is None or not self.exists(name)
        writer = writer.options(**{"overwriteSchema": "true"} if replaces_all else {"replaceWhere": where})
        return self.commit(lambda: writer.save(self.path(name)), name, metadata).get("numOutputRows", 0)

    def append(self, frame: DataFrame, name: str, metadata: Mapping[str, Any] | None = None) -> int:
        """Append rows in one commit; returns how many. `metadata` is stored with it (`commit_metadata`)."""
        writer = frame.write.format("delta").mode("append")
        if not self.exists(name):
            writer = writer.options(**self._properties(name))
        return self.commit(lambda: writer.save(self.path(name)), name, metadata).get("numOutputRows", 0)

    def insert_missing(
        self,
        frame: DataFrame,
        name: str,
        keys: Sequence[str],
        complete: Callable[[DataFrame], DataFrame] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Insert the rows whose key is not in the table yet, in one commit; returns how many.

        Without `metadata`, no commit is made where nothing is missing.

        Args:
            frame: Rows of the table, or their keys.
            name: Name of the table.
            keys: Columns that identify a row; null equals null.
            complete: Makes rows of the missing keys, where `frame` holds keys only.
            metadata: Stored with the commit (`commit_metadata`), even where no row is inserted.
        """
        fresh = frame.dropDuplicates(list(keys))
        if not self.exists(name):
            return self.append(complete(fresh) if complete else fresh, name, metadata)
        existing = self.read(name).select(*(F.col(key).alias(f"_known_{key}") for key in keys))
        same = [F.col(key).eqNullSafe(F.col(f"_known_{key}")) for key in keys]
        fresh = fresh.join(existing, same, "left_anti")
        if complete:
            fresh = complete(fresh)
        # A merge reads its source twice; a Python function that made the rows must run once.
        fresh = fresh.persist(StorageLevel.DISK_ONLY)
        try:
            if fresh.isEmpty():
                if metadata is not None:
                    self.touch_metadata(name, metadata)
                return 0
            target = DeltaTable.forPath(self.spark, self.path(name)).alias("known")
            condition = " AND ".join(f"known.{key} <=> fresh.{key}" for key in keys)
            merge = target.merge(fresh.alias("fresh"), condition).whenNotMatchedInsertAll()
            return self.commit(merge.execute, name, metadata).get("numTargetRowsInserted", 0)
        finally:
            fresh.unpersist()

    def update(
        self,
        frame: DataFrame,
        name: str,
        key: str,
        columns: Sequence[str] = (),
        delete_where: str | None = None,
        where: str = "true",
    ) -> dict[str, int]:
        """Update or delete existing rows whose `key` is in `frame`, in one commit.

        Args:
            frame: The key (unique) and the columns to update.
            name: Name of the table.
            key: Column that identifies a row.
            columns: Columns that take the frame's values.
            delete_where: Condition on the frame (alias `fresh`) under which the row is deleted instead.
            where: Further condition on the existing row (alias `known`) and the frame's row (alias `fresh`).

        Returns:
            Delta's metrics of the commit; empty where no row has such a key.
        """
        target = DeltaTable.forPath(self.spark, self.path(name)).alias("known")
        merge = target.merge(frame.alias("fresh"), f"known.{key} = fresh.{key} AND ({where})")
        if delete_where is not None:
            merge = merge.whenMatchedDelete(condition=delete_where)
        if columns:
            merge = merge.whenMatchedUpdate(set={column: f"fresh.{column}" for column in columns})
        return self.commit(merge.execute, name)

    def merge(self, frame: DataFrame, name: str, key: str, metadata: Mapping[str, Any]) -> dict[str, int]:
        """Insert or replace rows in one commit.

        Args:
            frame: All columns of the table; one row per key.
            name: Name of the table.
            key: Column that identifies a row.
            metadata: Stored with the commit (`commit_metadata`), even where no row changes.

        Returns:
            Numbers of rows `inserted` and `replaced`.
        """
        merge = (
            DeltaTable.forPath(self.spark, self.path(name))
            .alias("known")
            .merge(frame.alias("fresh"), f"known.{key} = fresh.{key}")
            .whenMatchedUpdateAll()
            .whenNotMatchedInsertAll()
        )
        metrics = self.commit(merge.execute, name, metadata)
        if not metrics:
            self.touch_metadata(name, metadata)
        return {
            "inserted": metrics.get("numTargetRowsInserted", 0),
            "replaced": metrics.get("numTargetRowsUpdated", 0),
        }

    def touch_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Commit new metadata and no rows."""
        writer = self.read(name).limit(0).write.format("delta").mode("append")
        with session_settings(self.spark, {_SKIP_EMPTY_COMMITS: "false"}):
            self.commit(lambda: writer.save(self.path(name)), name, metadata)

    def commit_metadata(self, name: str) -> dict[str, Any] | None:
        """Metadata of the commit that made the present rows (`TableLog.metadata`)."""
        return self.log(name).metadata()

    def has_change_feed_since(self, name: str, version: int) -> bool:
        """Whether the change feed reports all that happened above a version (`changes`)."""
        return self.log(name).has_change_feed_since(version)

    def changes(self, name: str, after: int) -> DataFrame:
        """Change feed of the commits above version `after`: the table's columns and Delta's three.

        Only for tables with `TableSpec.change_data_feed`, and where `has_change_feed_since`. Remembers the
        newest version as read.
        """
        history = self.log(name).history(after)
        assert history is not None  # has_change_feed_since
        self.read_versions[name] = self.version(name)
        # Split at rolled-back commits: the feed would report them and their removal.
        breaks = [at for at in range(1, len(history)) if history[at] > history[at - 1] + 1]
        spans = [history[start:end] for start, end in itertools.pairwise([0, *breaks, len(history)])]
        feeds = [self._change_feed(name, span[0], span[-1]) for span in spans if span]
        return union_all(feeds) if feeds else self._change_feed(name, after, after).limit(0)

    def _change_feed(self, name: str, first: int, last: int) -> DataFrame:
        reader = self.spark.read.format("delta").option("readChangeFeed", "true")
        return reader.option("startingVersion", first).option("endingVersion", last).load(self.path(name))

    def files(self, name: str, version: int, where: str | None = None) -> list[str]:
        """URLs of the Parquet files of one version, for readers that know nothing of Delta.

        Raises:
            DataQualityError: The table has deletion vectors or column mapping: its plain files would show
                deleted rows or wrong columns.
        """
        detail = DeltaTable.forPath(self.spark, self.path(name)).detail().first()
        properties = detail["properties"] if detail else {}
        features = set(detail["tableFeatures"] or []) if detail else set()
        mapped = properties.get("delta.columnMapping.mode", "none") != "none"
        if mapped or "deletionVectors" in features:
            raise DataQualityError(
                f"table {name!r} has {'column mapping' if mapped else 'deletion vectors'}, so its Parquet files cannot "
                f"be read without Delta, and overwriting keeps that: move its folder {self.path(name)} away and run "
                f"the stage {TABLES[name].writer!r} again"
            )
        frame = self.read(name, version)
        selected = frame if where is None else frame.where(where)
        return sorted(selected.inputFiles())

    def _properties(self, name: str) -> dict[str, str]:
        """Delta properties that a table is created with."""
        spec = TABLES[name]
        properties = {"delta.enableDeletionVectors": str(spec.deletion_vectors).lower()}
        if spec.change_data_feed:
            properties["delta.enableChangeDataFeed"] = "true"
        if spec.stats_columns:
            return properties | {"delta.dataSkippingStatsColumns": ",".join(spec.stats_columns)}
        return properties | {"delta.dataSkippingNumIndexedCols": "0"}

    def commit(
        self, write: Callable[[], object], name: str, metadata: Mapping[str, Any] | None = None
    ) -> dict[str, int]:
        """Write, and remember the version.

        Args:
            write: Makes at most one commit.
            name: Name of the table.
            metadata: Stored with the commit (`commit_metadata`).

        Returns:
            Delta's metrics of the commit; empty where it made none because no row changed.
        """
        version = self.committed_version(write, name, metadata)
        if version is None:
            return {}
        self.written_versions[name] = version
        return self.log(name).metrics(version)

    def committed_version(
        self, write: Callable[[], object], name: str, metadata: Mapping[str, Any] | None = None
    ) -> int | None:
        """Write under a token of its own; returns the version that bears it, whoever commits at the same time."""
        log = self.log(name)
        before = log.newest()
        own = OwnCommit(uuid.uuid4().hex, None if metadata is None else dict(metadata))
        with translate_errors(name), session_settings(self.spark, {_USER_METADATA: own.to_text()}):
            write()
        return log.version_of(own.token, after=-1 if before is None else before)


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn Delta's conflicts and refusals while a table is written into errors of this package.

    Raises:
        ConcurrentRunError: Another run committed first.
        DataQualityError: A value is not a number, or Delta refused the rows.
    """
    try:
        yield
    except LamSparkError:
        raise
    except Exception as error:
        text = str(error)
        if any(conflict in text for conflict in _CONFLICTS):
            raise ConcurrentRunError(
                f"another run changed table {name!r} while this run was writing it; nothing was written. "
                "Wait for the other run, then run the stage again"
            ) from error
        if NOT_A_NUMBER in text:
            raise DataQualityError(f"table {name!r} was not written: {NOT_A_NUMBER}") from error
        if isinstance(error, AnalysisException):
            raise DataQualityError(f"table {name!r} was not written: {first_line(error)}") from error
        raise
