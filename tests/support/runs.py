"""Runs of `lam-spark` in a process of their own, and readers of the tables that they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from tests.support.shop import DataSet

REPOSITORY = Path(__file__).parents[2]


def commits(root: Path, name: str) -> list[Path]:
    """Commit files of a table, oldest first."""
    return sorted((root / "tables" / name / "_delta_log").glob("*.json"))


def commit_info(root: Path, name: str) -> dict[str, Any]:
    """The `commitInfo` action of a table's newest commit."""
    actions = map(json.loads, commits(root, name)[-1].read_text().splitlines())
    (info,) = (action["commitInfo"] for action in actions if "commitInfo" in action)
    return dict(info)


def files(root: Path, name: str, version: int | None = None) -> list[str]:
    """Data files of a table version, read from the transaction log."""
    paths: dict[str, None] = {}
    for commit in commits(root, name)[: None if version is None else version + 1]:
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                paths[action["add"]["path"]] = None
            elif "remove" in action:
                paths.pop(action["remove"]["path"], None)
    return list(paths)


def table(root: Path, name: str, version: int | None = None) -> pa.Table:
    """A version of a Delta table, read without Spark and Delta."""
    parts = [pq.ParquetFile(root / "tables" / name / path).read() for path in files(root, name, version)]
    return pa.concat_tables(parts) if parts else pa.table({})


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    """Rows of the newest version of a table."""
    return table(root, name).to_pylist()


def rows_without_run(root: Path, name: str) -> list[tuple[Any, ...]]:
    """Sorted rows of a table, without the columns that a rerun may change."""
    excluded = ("run_id", "ingested_at", "consent_version")
    return sorted(tuple(v for k, v in row.items() if k not in excluded) for row in rows(root, name))


def versions(root: Path) -> dict[str, int]:
    """Table -> newest version."""
    folders = (path for path in (root / "tables").iterdir() if path.is_dir())  # not `publication.json`
    return {folder.name: len(commits(root, folder.name)) - 1 for folder in folders}


def start(*arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Start `lam-spark` with its output in pipes."""
    program = Path(sys.executable).with_name("lam-spark")
    return subprocess.Popen(
        [str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LAM_SPARK_LOG": "json"},
        start_new_session=start_new_session,
    )


def stop_when(
    condition: Callable[[], bool], process: subprocess.Popen[str], stop: Callable[[], None], timeout: float
) -> tuple[str, str]:
    """Stop a running process once a condition holds. Returns stdout and stderr.

    Asserts that the condition holds within `timeout` seconds, and that all child processes end.
    """
    try:
        deadline = time.monotonic() + timeout
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        stop()
    output = process.communicate(timeout=240)
    # The JVM ends once it notices that Python has ended. Until then it may finish a write.
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    return output


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        summary: JSON object on the last line of stdout.
        versions: Table -> newest version at the end of the run.
    """

    data: DataSet
    exit_code: int
    stdout: str
    stderr: str
    summary: dict[str, Any]
    versions: dict[str, int]

    @property
    def root(self) -> Path:
        """The workspace."""
        return self.data.root
