"""Lock of a workspace: an advisory file lock that the operating system releases when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lam_spark.errors import ConcurrentRunError, ConfigError


@contextlib.contextmanager
def workspace_lock(root: Path, run_id: str) -> Iterator[None]:
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
        file.truncate(0)
        file.write(json.dumps({"run_id": run_id, "pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield
