"""The table `audit`: one entry a stage and run, chained by sha256 so that a change or a gap shows.

An entry holds the resolved configuration, the versions of the tables read and written, all counts, the
model's digest where there is one, the code's git commit, seconds and memory. It holds no customer.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pyspark.sql import functions as F

from lam_spark import __version__
from lam_spark.errors import LamSparkError
from lam_spark.runtime.context import Run, StageResult
from lam_spark.runtime.provenance import git_commit
from lam_spark.storage.dataframes import local_frame

_GENESIS = "0" * 64
_SCHEMA = (
    "sequence BIGINT, run_id STRING, stage STRING, status STRING, recorded_at TIMESTAMP, entry STRING, "
    "previous_hash STRING, entry_hash STRING"
)


class AuditError(LamSparkError):
    """The audit chain is broken: an entry was changed, removed or added by hand."""


@dataclass(frozen=True)
class Cost:
    """What a stage took: wall seconds, and peak memory of all processes together (GiB), if measured."""

    seconds: float
    peak_memory_gib: float | None


class Chain:
    """Appends the records of one run.

    What it has appended last it remembers with the table's version, and looks it up only where another version
    came after it: asking Spark for one row costs more than a second.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last = (-1, _GENESIS)
        self._version: int | None = None

    def append(self, stage: str, result: StageResult | None, cost: Cost, error: str | None = None) -> None:
        """Append the record of one stage; `result` is None for one that failed."""
        run = self._run
        now = dt.datetime.now(dt.UTC)
        told = {
            "run_id": run.run_id,
            "recorded_at": now.isoformat(),
            "stage": stage,
            "as_of": run.config.as_of.isoformat(),
            "lam_spark": __version__,
            "git_commit": git_commit(),
            "config_digest": run.config.digest(),
            "config": run.config.model_dump(mode="json"),
            "tables_read": {k: v for k, v in run.tables.read_versions.items() if k != "audit"},
            "tables_written": dict(run.tables.written_versions),
            "counts": result.counts if result else {},
            "facts": result.facts if result else {},
            "seconds": round(cost.seconds, 3),
            "peak_memory_gib": cost.peak_memory_gib,
            "error": error,
        }
        entry = json.dumps(told, sort_keys=True, default=str)
        number, previous = self._newest()
        here = (number + 1, chain_hash(previous, entry))
        row = (here[0], run.run_id, stage, _status(told), now, entry, previous, here[1])
        run.tables.append(local_frame(run.spark, [row], _SCHEMA), "audit")
        self._last, self._version = here, run.tables.written_versions["audit"]

    def _newest(self) -> tuple[int, str]:
        """Number and hash of the newest entry."""
        tables = self._run.tables
        if not tables.exists("audit") or tables.version("audit") == self._version:
            return self._last
        last = tables.read("audit").orderBy(F.desc("sequence")).select("sequence", "entry_hash").first()
        return (last["sequence"], last["entry_hash"]) if last else (-1, _GENESIS)


def chain_hash(previous: str, entry: str) -> str:
    """Hash of an entry: sha256 over the hash before it and its own text."""
    return hashlib.sha256(f"{previous}\n{entry}".encode()).hexdigest()


def verify_chain(run: Run) -> int:
    """Check every entry against the one before, and what stands beside it; returns how many there are.

    That the newest ones were removed, it cannot see: the log of each run (`logs/RUN_ID.jsonl`) still tells of them.

    Raises:
        AuditError: names the first entry that does not follow.
    """
    previous, expected = _GENESIS, 0
    entries = run.tables.read("audit").withColumn("recorded_at", F.unix_micros("recorded_at"))
    for row in entries.orderBy("sequence").toLocalIterator():
        broken = (
            row["sequence"] != expected
            or row["previous_hash"] != previous
            or row["entry_hash"] != chain_hash(previous, row["entry"])
            or any(row[name] != value for name, value in _repeated(json.loads(row["entry"])).items())
        )
        if broken:
            raise AuditError(
                f"the audit chain breaks at entry {expected} (stage {row['stage']}, run {row['run_id']}): "
                "an entry was changed, removed or added outside lam_spark"
            )
        previous, expected = row["entry_hash"], expected + 1
    return expected


def _repeated(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says that columns beside it repeat; the time in microseconds UTC."""
    said = {"run_id": entry["run_id"], "stage": entry["stage"], "status": _status(entry)}
    if "recorded_at" in entry:  # earlier revisions did not put it into the entry
        since = dt.datetime.fromisoformat(entry["recorded_at"]) - dt.datetime.fromtimestamp(0, dt.UTC)
        said["recorded_at"] = since // dt.timedelta(microseconds=1)
    return said


def _status(entry: dict[str, Any]) -> str:
    return "failed" if entry["error"] else "done"


def latest_entries(
    run: Run, having: Mapping[str, Callable[[dict[str, Any]], bool]] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """The newest successful entry of each stage.

    Args:
        run: whose audit is read, an entry at a time, from the newest on.
        having: by stage, whether an entry of it counts; of the other stages all do.
    """
    found: dict[str, dict[str, Any]] = {}
    done = run.tables.read("audit").where("status = 'done'").orderBy(F.desc("sequence"))
    for row in done.select("stage", "entry").toLocalIterator():
        stage = row["stage"]
        if stage in found:
            continue
        entry = json.loads(row["entry"])
        if stage not in having or having[stage](entry):
            found[stage] = entry
    return found
