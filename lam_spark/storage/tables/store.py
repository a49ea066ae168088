"""Delta tables: the only module that reads or writes them.

Every read is pinned to a version and noted, every write is one atomic Delta commit and noted, so that the
run record can name the versions of everything. A stage that dies leaves the last good version readable.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConcurrentRunError, ConfigError, DataQualityError, LamSparkError
from lam_spark.storage.settings import session_settings


@dataclass(frozen=True)
class TableSpec:
    """What is fixed about a table.

    Attributes:
        stage: the stage that writes it (named in errors).
        stats: columns whose min/max go into the transaction log. Columns that identify a customer never
            do: statistics outlive the rows that an erasure removes.
        changes: whether Delta keeps a change feed, from which a later stage learns whose rows changed.
        vectors: whether a change marks old rows as deleted (deletion vectors) instead of rewriting their
            files: a change of 1 % of the rows then writes 1 %. Only Delta may read such a table (`files`
            refuses it), and what was deleted stays in the files until
            `REORG TABLE delta.`path` APPLY (PURGE)` and `VACUUM`: an erasure has to run both.
    """

    stage: str
    stats: tuple[str, ...] = ()
    changes: bool = False
    vectors: bool = False


TABLES: Mapping[str, TableSpec] = {
    "identity": TableSpec("ingest"),
    "links": TableSpec("ingest"),
    "events": TableSpec("ingest", ("event_time", "source"), changes=True),
    "quarantine": TableSpec("ingest", ("source",)),
    "unresolved": TableSpec("ingest", ("event_time", "source")),
    "reconciliation": TableSpec("ingest", ("recorded_at",)),
    "ingestion_state": TableSpec("ingest", ("reader",)),
    "consent": TableSpec("consent", ("effective_at",)),
    "vocabulary": TableSpec("sequences", ("field",)),
    "value_counts": TableSpec("sequences", ("field",)),
    "sequences": TableSpec("sequences", ("seq_len",), vectors=True),
    "examples": TableSpec("examples", ("as_of", "split")),
    "training_blocks": TableSpec("snapshot"),
    "scores": TableSpec("score", ("as_of", "target")),
    "embeddings": TableSpec("embed", ("as_of",)),
    "held_out_scores": TableSpec("evaluate", ("as_of", "target")),
    "held_out_predictions": TableSpec("evaluate", ("as_of", "target")),
    "contact_list": TableSpec("deliver", ("as_of",)),
    "audit": TableSpec("run", ("recorded_at",)),
}

# What a job raises on a score or vector that is not a number (`raise_error`), so that it ends before it publishes.
NOT_A_NUMBER = "what the model says is not a number: the model or its inputs are damaged"

# What Spark says where a version is in the log, and VACUUM has removed its files.
GONE = "FAILED_READ_FILE.FILE_NOT_EXIST"

# By default Delta makes no commit of a write without rows.
_SKIP_EMPTY = "spark.databricks.delta.skipRecordingEmptyCommits"
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
# Commits that leave a table's rows as they are.
_SAME_ROWS = ("OPTIMIZE", "REORG", "VACUUM START", "VACUUM END")

# Commits that the change feed tells row by row, or has nothing to tell of.
_TOLD = ("WRITE", "MERGE", "UPDATE", "DELETE", *_SAME_ROWS)

# Every night leaves small files in every table that it writes: each read then opens them all.
_COMMITS_BETWEEN_COMPACTIONS = 32
_COMPACTION = {
    # Only files below the first are joined, to files of about the second (bytes): large ones are left as they are.
    "spark.databricks.delta.optimize.minFileSize": str(64 * 2**20),
    "spark.databricks.delta.optimize.maxFileSize": str(256 * 2**20),
}

# Lost races: another run committed between our read and our write.
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
    """The tables of one workspace, with the versions that this run read and wrote.

    Attributes:
        spark: session with Delta.
        folder: where the tables lie; every executor must see it.
        read_versions: table -> version last read.
        written_versions: table -> version last written.
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

    def exists(self, name: str) -> bool:
        """Whether the table was ever written."""
        return bool(self._commits(name))

    def version(self, name: str) -> int:
        """The newest version.

        Raises:
            ConfigError: the table was never written; the message names the stage that does.
        """
        commits = self._commits(name)
        if not commits:
            raise ConfigError(
                f"expected a table {name!r} at {self.path(name)}, found none: "
                f"run the stage {TABLES[name].stage!r} first"
            )
        return max(commits)

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """Read one version, the newest where none is given, and note it."""
        pinned = self.version(name) if version is None else version
        self.read_versions[name] = pinned
        return self.spark.read.format("delta").option("versionAsOf", pinned).load(self.path(name))

    def overwrite(
        self,
        frame: DataFrame,
        name: str,
        where: str | None = None,
        partition_by: Sequence[str] = (),
        note: Mapping[str, Any] | None = None,
    ) -> int:
        """Replace the table (or only the rows that `where` names) in one commit.

        `note` is kept with the commit (`note_of`).

        Returns:
            Rows written. A rerun replaces the same rows by the same rows.
        """
        writer = frame.write.format("delta").mode("overwrite")
        for key, value in self._properties(name).items():
            writer = writer.option(key, value)
        if partition_by:
            writer = writer.partitionBy(*partition_by)
        if note is not None:
            writer = writer.option("userMetadata", json.dumps(note))
        if where is not None and self.exists(name):
            # Rows that an earlier revision wrote may lack a column.
            writer = writer.option("replaceWhere", where).option("mergeSchema", "true")
        else:
            writer = writer.option("overwriteSchema", "true")
        return self._commit(lambda: writer.save(self.path(name)), name).get("numOutputRows", 0)

    def append(self, frame: DataFrame, name: str) -> int:
        """Append rows in one commit; returns how many."""
        writer = frame.write.format("delta").mode("append")
        if not self.exists(name):
            for key, value in self._properties(name).items():
                writer = writer.option(key, value)
        return self._commit(lambda: writer.save(self.path(name)), name).get("numOutputRows", 0)

    def insert_new(
        self,
        frame: DataFrame,
        name: str,
        keys: Sequence[str],
        complete: Callable[[DataFrame], DataFrame] | None = None,
    ) -> int:
        """Insert the rows whose key is not there yet, in one commit; returns how many.

        An insert of nothing writes no version.

        Args:
            frame: rows of the table, or their keys.
            name: the table.
            keys: columns that name a row.
            complete: makes rows of the keys that are new, where `frame` holds keys only.
        """
        fresh = frame.dropDuplicates(list(keys))
        if not self.exists(name):
            return self.append(complete(fresh) if complete else fresh, name)
        # As the merge below compares: a missing part of a key is a value like any other.
        known = self.read(name).select(*(F.col(key).alias(f"known_{key}") for key in keys))
        fresh = fresh.join(known, [F.col(key).eqNullSafe(F.col(f"known_{key}")) for key in keys], "left_anti")
        if complete:
            fresh = complete(fresh)
        # A merge reads its source twice; what made the rows (a Python function, perhaps) runs once.
        fresh = fresh.persist(StorageLevel.DISK_ONLY)
        try:
            if fresh.isEmpty():
                return 0
            target = DeltaTable.forPath(self.spark, self.path(name)).alias("known")
            condition = " AND ".join(f"known.{key} <=> fresh.{key}" for key in keys)
            merge = target.merge(fresh.alias("fresh"), condition).whenNotMatchedInsertAll()
            return self._commit(merge.execute, name).get("numTargetRowsInserted", 0)
        finally:
            fresh.unpersist()

    def amend(
        self, frame: DataFrame, name: str, key: str, update: Sequence[str] = (), delete: str | None = None
    ) -> dict[str, int]:
        """Change rows that are there, in one commit: those whose `key` is in `frame` (unique in it).

        Args:
            frame: the key, and the columns to update.
            name: the table.
            key: column that names a row.
            update: columns that take the frame's values.
            delete: condition on the frame (alias `fresh`) under which the row is deleted instead.

        Returns:
            Delta's metrics of the commit; nothing where no row has such a key.
        """
        target = DeltaTable.forPath(self.spark, self.path(name)).alias("known")
        merge = target.merge(frame.alias("fresh"), f"known.{key} = fresh.{key}")
        if delete is not None:
            merge = merge.whenMatchedDelete(condition=delete)
        if update:
            merge = merge.whenMatchedUpdate(set={column: f"fresh.{column}" for column in update})
        return self._commit(merge.execute, name)

    def apply(
        self, frame: DataFrame, name: str, key: str, note: Mapping[str, Any], leaving: DataFrame | None = None
    ) -> dict[str, int]:
        """Insert or replace the rows of `frame`, delete those of `leaving`: all or nothing, with `note` at the end.

        A row's other columns are not read: the rows that `frame` names are written as it gives them.

        Args:
            frame: the table's columns; grain: a `key`.
            name: the table.
            key: column that names a row.
            note: kept with the last commit (`note_of`); it moves on also where there is nothing to do.
            leaving: keys whose rows go, none of them in `frame`; None: none.

        Returns:
            Rows inserted, replaced and deleted.
        """
        with self.together(name) if leaving is not None else contextlib.nullcontext():
            # Deletions in a commit of their own. As a clause beside the others they would make Delta carry all
            # columns of all rows through the merge, the whole table read to change a hundredth of it.
            deleted = self._delete(leaving, name, key) if leaving is not None else 0
            merge = (
                DeltaTable.forPath(self.spark, self.path(name))
                .alias("known")
                .merge(frame.alias("fresh"), f"known.{key} = fresh.{key}")
                .whenMatchedUpdateAll()
                .whenNotMatchedInsertAll()
            )
            with session_settings(self.spark, {_USER_METADATA: json.dumps(note)}):
                made = self._commit(merge.execute, name)
            if not made:
                self.renew_note(name, note)
            return {
                "inserted": made.get("numTargetRowsInserted", 0),
                "replaced": made.get("numTargetRowsUpdated", 0),
                "deleted": deleted,
            }

    def _delete(self, keys: DataFrame, name: str, key: str) -> int:
        """Delete the rows with these keys in one commit; how many they were (no commit where there are none)."""
        return self.amend(keys, name, key, delete="true").get("numTargetRowsDeleted", 0)

    def renew_note(self, name: str, note: Mapping[str, Any]) -> None:
        """Commit a new note and no rows."""
        nothing = self.read(name).limit(0)
        writer = nothing.write.format("delta").mode("append").option("userMetadata", json.dumps(note))
        with session_settings(self.spark, {_SKIP_EMPTY: "false"}):
            self._commit(lambda: writer.save(self.path(name)), name)

    def note_of(self, name: str) -> dict[str, Any] | None:
        """The note of the commit that made the table's rows; None where another change came after it."""
        commits = set(self._commits(name))
        version = max(commits, default=-1)
        while version in commits:
            commit = self._commit_info(name, version)
            if "userMetadata" in commit:
                note: dict[str, Any] = json.loads(commit["userMetadata"])
                return note
            if commit["operation"] == "RESTORE":
                version = _restored(commit)
            elif commit["operation"] in _SAME_ROWS:
                version -= 1
            else:
                return None
        return None

    def history(self, name: str, after: int) -> list[int] | None:
        """The commits above version `after` that the present rows come of, oldest first.

        What was taken back (`undo`) is not among them, nor is its taking back. None: the log has lost one, or the
        present rows do not come of that version.
        """
        commits = set(self._commits(name))
        path: list[int] = []
        version = self.version(name)
        while version > after and version in commits:
            commit = self._commit_info(name, version)
            if commit["operation"] == "RESTORE":
                version = _restored(commit)
            else:
                path.append(version)
                version -= 1
        return path[::-1] if version == after and after in commits else None

    def told_since(self, name: str, version: int) -> bool:
        """Whether the change feed tells, row by row, what has happened above a version (`changes`)."""
        history = self.history(name, version)
        return history is not None and all(self._is_told(name, commit) for commit in history)

    def _is_told(self, name: str, version: int) -> bool:
        commit = self._commit_info(name, version)
        replaced = commit["operation"] == "WRITE" and commit["operationParameters"].get("mode") != "Append"
        return commit["operation"] in _TOLD and not replaced

    def compact(self, name: str) -> int:
        """Join the table's small files once many commits have come since that was last done.

        Rows, notes and the change feed stay as they are; what deletion vectors hide leaves the joined files.

        Returns:
            Files that were replaced; 0 where it is too early, or nothing is small.
        """
        commits = set(self._commits(name))
        before = max(commits)
        # Of a table that is written once a week, Delta has cleaned most of them away: those left no trace of a joining.
        newest = range(before, before - _COMMITS_BETWEEN_COMPACTIONS, -1)
        if newest[-1] < 0 or any(self._is_whole(name, version) for version in newest if version in commits):
            return 0
        with session_settings(self.spark, _COMPACTION):
            self._attempt(DeltaTable.forPath(self.spark, self.path(name)).optimize().executeCompaction, name)
        if self.version(name) == before:
            return 0
        return int(self._commit_info(name, self.version(name))["operationMetrics"]["numRemovedFiles"])

    def _is_whole(self, name: str, version: int) -> bool:
        """Whether a commit left no small files of earlier ones: it joined them, or wrote the whole table anew."""
        commit = self._commit_info(name, version)
        parameters = commit["operationParameters"]
        overwrote = parameters.get("mode") == "Overwrite" and parameters.get("predicate", "[]") in ("[]", "")
        return commit["operation"] == "OPTIMIZE" or overwrote

    @contextlib.contextmanager
    def together(self, *names: str) -> Iterator[None]:
        """Publish several tables or none: whatever fails inside, all are as they were before.

        What to go back to is noted in a file first, so that a run that is killed inside is undone by the next
        one (`undo`). A reader in between may see some of the tables new and some old.
        """
        before = {name: self.version(name) if self.exists(name) else None for name in names}
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self._undo_file.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(before, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._undo_file)
        try:
            yield
        except BaseException:
            self.undo()
            raise
        self._undo_file.unlink()

    def undo(self) -> list[str]:
        """Take back what a publication that did not end has written; returns the tables that had changed."""
        if not self._undo_file.exists():
            return []
        changed = []
        for name, version in json.loads(self._undo_file.read_text(encoding="utf-8")).items():
            if version is None:
                if Path(self.path(name)).exists():
                    shutil.rmtree(self.path(name))
                    changed.append(name)
            elif self.version(name) > version:
                DeltaTable.forPath(self.spark, self.path(name)).restoreToVersion(version)
                changed.append(name)
            self.written_versions.pop(name, None)
        self._undo_file.unlink()
        return changed

    @property
    def _undo_file(self) -> Path:
        return self.folder / "undo.json"

    def changes(self, name: str, after: int) -> DataFrame:
        """The change feed of the commits above version `after` (`history`): the table's columns and Delta's three.

        Only for tables with `TableSpec.changes`, and where `told_since`. Notes the newest version as read.
        """
        history = self.history(name, after)
        assert history is not None  # told_since
        self.read_versions[name] = self.version(name)
        # Without a break but where something was taken back: the feed would tell of it, and of its end.
        breaks = [at for at in range(1, len(history)) if history[at] > history[at - 1] + 1]
        spans = [history[start:end] for start, end in itertools.pairwise([0, *breaks, len(history)])]
        feeds = [self._feed(name, span[0], span[-1]) for span in spans if span]
        # Of no commit: no rows, but the columns.
        return reduce(DataFrame.unionByName, feeds) if feeds else self._feed(name, after, after).limit(0)

    def _feed(self, name: str, first: int, last: int) -> DataFrame:
        feed = self.spark.read.format("delta").option("readChangeFeed", "true")
        return feed.option("startingVersion", first).option("endingVersion", last).load(self.path(name))

    def files(self, name: str, version: int, where: str | None = None) -> list[str]:
        """URLs of the Parquet files of one version: what a reader that knows nothing of Delta may read.

        Raises:
            DataQualityError: the table has deletion vectors or column mapping; its plain files would show
                deleted rows or wrong columns.
        """
        detail = DeltaTable.forPath(self.spark, self.path(name)).detail().first()
        properties = detail["properties"] if detail else {}
        features = set(detail["tableFeatures"] or []) if detail else set()
        mapped = properties.get("delta.columnMapping.mode", "none") != "none"
        if mapped or "deletionVectors" in features:
            raise DataQualityError(
                f"table {name!r} has {'column mapping' if mapped else 'deletion vectors'}, so its Parquet files cannot "
                f"be read without Delta, and writing it again keeps that: move its folder {self.path(name)} away and "
                f"run the stage {TABLES[name].stage!r} again"
            )
        frame = self.spark.read.format("delta").option("versionAsOf", version).load(self.path(name))
        self.read_versions[name] = version
        selected = frame if where is None else frame.where(where)
        return sorted(selected.inputFiles())

    def _properties(self, name: str) -> dict[str, str]:
        stats = TABLES[name].stats
        skipping = (
            {"delta.dataSkippingStatsColumns": ",".join(stats)}
            if stats
            else {"delta.dataSkippingNumIndexedCols": "0"}
        )
        feed = {"delta.enableChangeDataFeed": "true"} if TABLES[name].changes else {}
        vectors = {"delta.enableDeletionVectors": str(TABLES[name].vectors).lower()}
        return {**vectors, **skipping, **feed}

    def _commit(self, write: Callable[[], object], name: str) -> dict[str, int]:
        """Write, and note the version; Delta's own counts of the commit, or nothing where it made none.

        It makes none where no row came or went.
        """
        before = max(self._commits(name), default=-1)
        self._attempt(write, name)
        version = self.version(name)
        if version == before:
            return {}
        self.written_versions[name] = version
        metrics = self._commit_info(name, version)["operationMetrics"]
        return {metric: int(count) for metric, count in metrics.items()}

    def _attempt(self, write: Callable[[], object], name: str) -> None:
        """Write; a lost race and a refusal of Delta's become errors of ours."""
        try:
            write()
        except LamSparkError:
            raise
        except Exception as error:
            text = str(error)
            if any(conflict in text for conflict in _CONFLICTS):
                raise ConcurrentRunError(
                    f"another run changed table {name!r} while this one was writing it; nothing was written "
                    "here. Wait for the other run, then run the stage again"
                ) from error
            if NOT_A_NUMBER in text:
                raise DataQualityError(f"table {name!r} was not written: {NOT_A_NUMBER}") from error
            if isinstance(error, AnalysisException):
                raise DataQualityError(f"table {name!r} was not written: {text.splitlines()[0]}") from error
            raise

    def _commits(self, name: str) -> list[int]:
        """Versions in the transaction log's folder: a listing, where asking Spark costs a second each."""
        log = Path(self.path(name)) / "_delta_log"
        return [int(file.stem) for file in log.glob("*.json") if file.stem.isdigit()]

    def _commit_info(self, name: str, version: int) -> dict[str, Any]:
        commit = Path(self.path(name)) / "_delta_log" / f"{version:020d}.json"
        for line in commit.read_text(encoding="utf-8").splitlines():
            action: dict[str, dict[str, Any]] = json.loads(line)
            if "commitInfo" in action:
                return action["commitInfo"]
        raise DataQualityError(f"commit {commit} of table {name!r} holds no record of what was written")


def _restored(commit: Mapping[str, Any]) -> int:
    """The version whose rows a RESTORE (`undo`) brought back; below all others where it was named by a time."""
    version = commit["operationParameters"].get("version")
    return -1 if version is None else int(version)
