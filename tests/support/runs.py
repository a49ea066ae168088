"""One full `lam-spark run` on the small shop, as people start it: a process, Horovod with two ranks, MLflow."""

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
    """The commits of a table, oldest first."""
    return sorted((root / "tables" / name / "_delta_log").glob("*.json"))


def commit_info(root: Path, name: str) -> dict[str, Any]:
    """What the newest commit of a table says that it did."""
    actions = map(json.loads, commits(root, name)[-1].read_text().splitlines())
    (info,) = (action["commitInfo"] for action in actions if "commitInfo" in action)
    return dict(info)


def files(root: Path, name: str, version: int | None = None) -> list[str]:
    """The files that a version of a table consists of, by its log."""
    live: dict[str, None] = {}
    for commit in commits(root, name)[: None if version is None else version + 1]:
        for line in commit.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                live[action["add"]["path"]] = None
            elif "remove" in action:
                live.pop(action["remove"]["path"], None)
    return list(live)


def table(root: Path, name: str, version: int | None = None) -> pa.Table:
    """A version of a Delta table, read from its log and its files without Spark or Delta."""
    parts = [pq.ParquetFile(root / "tables" / name / path).read() for path in files(root, name, version)]
    return pa.concat_tables(parts) if parts else pa.table({})


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    """The newest version of a table, a dict a row."""
    return table(root, name).to_pylist()


def versions(root: Path) -> dict[str, int]:
    """The newest version of every table."""
    folders = (path for path in (root / "tables").iterdir() if path.is_dir())  # beside them lies what to undo
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


def stopped_when(
    seen: Callable[[], bool], process: subprocess.Popen[str], stop: Callable[[], None], patience: float
) -> tuple[str, str]:
    """Stop a process that is at work as soon as something is seen; stdout and stderr. Nothing that it started is left.

    `patience`: seconds until it must have been seen.
    """
    try:
        deadline = time.monotonic() + patience
        while not seen():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        stop()
    told = process.communicate(timeout=240)
    # A Java machine ends by itself once it sees that Python is gone; until then it may finish a write.
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
    return told


@dataclass(frozen=True)
class Finished:
    """A run that has ended.

    Attributes:
        summary: the last line on stdout.
        versions: of the tables when it ended.
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
