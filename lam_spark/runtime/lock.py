"""Lock of a workspace: an advisory file lock that the operating system releases when its holder dies.

The JVM of a run that was killed lives some seconds longer and may finish a write. The lock file names it, so that the
next run can wait for its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from lam_spark.errors import ConcurrentRunError, ConfigError
from lam_spark.runtime.log import RunLog

# Seconds that the next run waits for the JVM of a killed run.
_JVM_LIMIT = 120.0
_POLL_SECONDS = 0.1
# Both times that `_seconds_after_boot` reads are computed from the clock, which may change in between.
_CLOCK_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class RunJvm:
    """The JVM of a run.

    Attributes:
        run_id: The run.
        host: Name of its machine.
        pid: Process id.
        started: Seconds after the boot, when it started: another process may get the same id later.
    """

    run_id: str
    host: str
    pid: int
    started: float

    def is_running(self) -> bool:
        """Whether it still runs on this machine; False for another machine, whose processes are not seen."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(_seconds_after_boot(process) - self.started) < _CLOCK_TOLERANCE_SECONDS
        except psutil.NoSuchProcess:
            return False


class WorkspaceLock:
    """A lock that this run holds."""

    def __init__(self, root: Path, file: IO[str], run_id: str) -> None:
        self._root, self._file, self._run_id = root, file, run_id
        # Of a run that was killed; kept in the file until it has ended.
        self._killed = _recorded_jvm(file)
        self._write(self._killed)

    def wait_for_killed_run(self, log: RunLog, limit: float = _JVM_LIMIT) -> None:
        """Wait until the JVM of the last run has ended, if that run was killed.

        Args:
            log: Log of this run.
            limit: Longest wait, in seconds.

        Raises:
            ConcurrentRunError: It still runs after `limit` seconds.
        """
        jvm = self._killed
        if jvm is not None and jvm.is_running():
            log.event(
                "waiting for the JVM of a killed run", level="warning", killed_run=jvm.run_id, pid=jvm.pid
            )
            log.echo(f"[yellow]![/] waiting for the JVM (process {jvm.pid}) of the killed run {jvm.run_id}")
            end = time.monotonic() + limit
            while jvm.is_running():
                if time.monotonic() > end:
                    raise ConcurrentRunError(
                        f"the run {jvm.run_id} was killed, but its JVM still runs and may write to {self._root}: wait "
                        f"until it has ended, or end it with kill -9 {jvm.pid}"
                    )
                time.sleep(_POLL_SECONDS)
        self._killed = None
        self._write(None)

    def record_jvm(self, pid: int | None) -> None:
        """Name the JVM of this run, for the next run if this one is killed; None where it outlives its runs."""
        if pid is not None:
            started = _seconds_after_boot(psutil.Process(pid))
            self._write(RunJvm(self._run_id, socket.gethostname(), pid, started))

    def release(self) -> None:
        """Remove the content: this run was not killed. The JVM of a killed run that still runs stays named."""
        if self._killed is None:
            self._file.truncate(0)

    def _write(self, jvm: RunJvm | None) -> None:
        holder = {"run_id": self._run_id, "pid": os.getpid(), "host": socket.gethostname()}
        self._file.truncate(0)
        self._file.write(json.dumps(holder | ({"jvm": dataclasses.asdict(jvm)} if jvm else {})))
        self._file.flush()


@contextlib.contextmanager
def workspace_lock(root: Path, run_id: str) -> Iterator[WorkspaceLock]:
    """Hold the workspace for this run.

    Raises:
        ConcurrentRunError: Another run holds it; the message says which.
        ConfigError: The folder cannot be created or written.
    """
    path = root / ".lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"expected a writable folder at root = {root}: {error.strerror}; set another with --set root=PATH"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ConcurrentRunError(
                f"another run holds the workspace {root}: {holder}. Wait for it, or use another root"
            ) from None
        lock = WorkspaceLock(root, file, run_id)
        try:
            yield lock
        finally:
            lock.release()


def _recorded_jvm(file: IO[str]) -> RunJvm | None:
    """The JVM that the last run left in the file; None if it ended by itself, or wrote only a part."""
    file.seek(0)
    try:
        jvm = json.loads(file.read() or "{}").get("jvm")
        return RunJvm(**jvm) if jvm else None
    except (ValueError, TypeError, AttributeError):
        return None


def _seconds_after_boot(process: psutil.Process) -> float:
    """Start time of a process that a correction of the machine's clock does not move."""
    return float(process.create_time() - psutil.boot_time())
