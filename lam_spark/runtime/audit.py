"""The table `audit`: one entry per stage and run, chained by sha256 so that a change or a gap is detected.

A stage whose output people act on (`Stage.publishes`) has a further entry, `started`, before it runs. The entry of a
stage whose run was killed is appended by the next run, from the file `running_stage.json`. An entry holds
the resolved configuration, the versions of the tables read and written, the stage's typed result, the code's git
commit, seconds and memory. It holds no customer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from pyspark.sql import functions as F

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.errors import AuditError
from lam_spark.runtime.provenance import git_commit
from lam_spark.runtime.results import StageResult
from lam_spark.runtime.running import RunningStage
from lam_spark.storage.dataframes import local_frame
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import micros

Result = TypeVar("Result", bound=StageResult)

# Of the entry as a whole; each result has a format number of its own.
ENTRY_FORMAT = 2
_GENESIS = "0" * 64
_SCHEMA = (
    "sequence BIGINT, run_id STRING, stage STRING, status STRING, recorded_at TIMESTAMP, entry STRING, "
    "previous_hash STRING, entry_hash STRING"
)


@dataclass(frozen=True)
class StageCost:
    """Cost of a stage: wall seconds, and peak memory of all processes in total (GiB), None if not measured."""

    seconds: float
    peak_memory_gib: float | None


@dataclass(frozen=True)
class AuditEntry:
    """One entry, as the report reads it.

    Attributes:
        as_of: ISO date of the run's configuration.
        config: The resolved configuration as JSON values.
        tables_read, tables_written: Table -> version.
        result: Serialised result of the stage; None if the stage failed.
    """

    run_id: str
    stage: str
    as_of: str
    lam_spark: str
    git_commit: str
    config_digest: str
    config: dict[str, Any]
    tables_read: dict[str, int]
    tables_written: dict[str, int]
    result: dict[str, Any] | None
    seconds: float
    peak_memory_gib: float | None

    @classmethod
    def from_json(cls, text: str) -> AuditEntry:
        """Read the column `entry`.

        Raises:
            AuditError: The entry has another format.
        """
        values = json.loads(text)
        if values.get("format") != ENTRY_FORMAT:
            raise AuditError(
                f"expected audit entries of format {ENTRY_FORMAT}, found format {values.get('format')} (stage "
                f"{values.get('stage')}, run {values.get('run_id')}): it was written by another version of lam_spark. "
                "Run the stages again in a new root"
            )
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})

    def result_of(self, kind: type[Result]) -> Result:
        """The typed result.

        Raises:
            AuditError: The stage failed, or another version wrote the result; the message names the stage.
        """
        if self.result is None:
            raise AuditError(f"the entry of the stage {self.stage!r} in run {self.run_id} holds no result")
        try:
            return kind.from_json(self.result)
        except AuditError as error:
            raise AuditError(
                f"audit entry of the stage {self.stage!r}, run {self.run_id}: {error}"
            ) from error


class AuditChain:
    """Appends the entries of one run.

    Remembers its last entry with the table's version and reads the table only if another version came after it:
    reading one row takes Spark more than a second.
    """

    def __init__(self, tables: Tables, config: Config, run_id: str) -> None:
        self._tables, self._config, self._run_id = tables, config, run_id
        self._last = (-1, _GENESIS)
        self._version: int | None = None
        self._running: RunningStage | None = None
        self._running_file = tables.folder / "running_stage.json"

    def begin(self, stage: str) -> None:
        """Write to a file that a stage runs, until its entry is appended: the next run sees whether this was killed."""
        self._running = self._described(stage)
        self._running.write(self._running_file)

    def append(
        self, stage: str, result: StageResult | None, cost: StageCost, error: str | None = None
    ) -> None:
        """Append the entry of one stage; `result` is None for one that failed.

        Raises:
            Exception: The entry cannot be written. The next run appends the one of a stage that failed.
        """
        try:
            self._append(self._described(stage), "failed" if error else "done", result, cost, error)
        except Exception:
            if error:
                with contextlib.suppress(OSError):  # raises the first error
                    dataclasses.replace(self._described(stage), error=error).write(self._running_file)
            raise
        self._running_file.unlink(missing_ok=True)
        self._running = None

    def start(self, stage: str) -> None:
        """Append an entry before a stage runs, so that a list that was published has one even if the run is killed."""
        self._append(self._described(stage), "started", None, StageCost(0.0, None), None)

    def append_killed(self) -> RunningStage | None:
        """Append the entry of the stage during which the last run was killed, unless it has one.

        Call it before a stage of this run begins.

        Returns:
            The stage whose entry was missing; None if there is none.

        Raises:
            AuditError: Another version of lam_spark wrote the file of the running stage.
        """
        killed = RunningStage.read(self._running_file)
        if killed is None:
            return None
        is_missing = not self._has_entry(killed)
        if is_missing:
            self._append(killed, "failed", None, StageCost(0.0, None), killed.error)
        self._running_file.unlink()
        return killed if is_missing else None

    def _has_entry(self, running: RunningStage) -> bool:
        """Whether a stage has the entry of its end: its run may have been killed just after that was written."""
        if not self._tables.exists("audit"):
            return False
        ends = self._tables.read("audit").where(
            (F.col("run_id") == running.run_id)
            & (F.col("stage") == running.stage)
            & (F.col("status") != "started")
            & (F.col("recorded_at") >= F.lit(dt.datetime.fromisoformat(running.started_at)))
        )
        return not ends.isEmpty()

    def _described(self, stage: str) -> RunningStage:
        """The stage of this run as its entry describes it."""
        if self._running is not None and self._running.stage == stage:
            return self._running
        return RunningStage(
            run_id=self._run_id,
            stage=stage,
            started_at=dt.datetime.now(dt.UTC).isoformat(),
            as_of=self._config.as_of.isoformat(),
            lam_spark=__version__,
            git_commit=git_commit(),
            config_digest=self._config.digest(),
            config=self._config.model_dump(mode="json"),
        )

    def _append(
        self,
        running: RunningStage,
        status: str,
        result: StageResult | None,
        cost: StageCost,
        error: str | None,
    ) -> None:
        now = dt.datetime.now(dt.UTC)
        run_id, stage = running.run_id, running.stage
        values = {
            "format": ENTRY_FORMAT,
            "run_id": run_id,
            "recorded_at": now.isoformat(),
            "stage": stage,
            "status": status,
            "as_of": running.as_of,
            "lam_spark": running.lam_spark,
            "git_commit": running.git_commit,
            "config_digest": running.config_digest,
            "config": running.config,
            "tables_read": {k: v for k, v in self._tables.read_versions.items() if k != "audit"},
            "tables_written": dict(self._tables.written_versions),
            "result": result.to_json() if result else None,
            "seconds": round(cost.seconds, 3),
            "peak_memory_gib": cost.peak_memory_gib,
            "error": error,
        }
        entry = json.dumps(values, sort_keys=True, default=str)
        number, previous = self._newest()
        last = (number + 1, chain_hash(previous, entry))
        row = (last[0], run_id, stage, status, now, entry, previous, last[1])
        self._tables.append(local_frame(self._tables.spark, [row], _SCHEMA), "audit")
        self._last, self._version = last, self._tables.written_versions["audit"]

    def _newest(self) -> tuple[int, str]:
        """Number and hash of the newest entry."""
        if not self._tables.exists("audit") or self._tables.version("audit") == self._version:
            return self._last
        last = self._tables.read("audit").orderBy(F.desc("sequence")).select("sequence", "entry_hash").first()
        return (last["sequence"], last["entry_hash"]) if last else (-1, _GENESIS)


def chain_hash(previous: str, entry: str) -> str:
    """Hash of an entry: sha256 over the previous hash and the entry's text."""
    return hashlib.sha256(f"{previous}\n{entry}".encode()).hexdigest()


def verify_chain(tables: Tables) -> int:
    """Check every entry against the one before it and against its own columns; returns the number of entries.

    Removed newest entries cannot be detected; the log of each run (`logs/RUN_ID.jsonl`) still lists them.

    Raises:
        AuditError: Names the first entry that does not follow.
    """
    previous, expected = _GENESIS, 0
    entries = tables.read("audit").withColumn("recorded_at", F.unix_micros("recorded_at"))
    for row in entries.orderBy("sequence").toLocalIterator():
        broken = (
            row["sequence"] != expected
            or row["previous_hash"] != previous
            or row["entry_hash"] != chain_hash(previous, row["entry"])
            or any(row[name] != value for name, value in _column_values(json.loads(row["entry"])).items())
        )
        if broken:
            raise AuditError(
                f"the audit chain breaks at entry {expected} (stage {row['stage']}, run {row['run_id']}): "
                "an entry was changed, removed or added outside lam_spark"
            )
        previous, expected = row["entry_hash"], expected + 1
    return expected


def _column_values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the columns of a row must have according to its entry; times in microseconds UTC."""
    return {
        "run_id": entry.get("run_id"),
        "stage": entry.get("stage"),
        "status": entry.get("status"),
        "recorded_at": micros(dt.datetime.fromisoformat(entry["recorded_at"])),
    }


def latest_entries(
    tables: Tables, conditions: Mapping[str, Callable[[AuditEntry], bool]] = MappingProxyType({})
) -> dict[str, AuditEntry]:
    """The newest successful entry of each stage.

    Args:
        tables: Tables of the workspace; the audit is read one entry at a time, newest first.
        conditions: Stage -> whether an entry of it counts; of other stages all entries do.
    """
    newest: dict[str, AuditEntry] = {}
    done = tables.read("audit").where("status = 'done'").orderBy(F.desc("sequence"))
    for row in done.select("stage", "entry").toLocalIterator():
        stage = row["stage"]
        if stage in newest:
            continue
        entry = AuditEntry.from_json(row["entry"])
        if stage not in conditions or conditions[stage](entry):
            newest[stage] = entry
    return newest
