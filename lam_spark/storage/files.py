"""Small files: atomic writes, and JSON lines whose writer may have been killed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file so that a reader sees the old content or the new one, never a part.

    The content is synced to disk before the rename; a missing folder is created. File mode is 0644.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without line end: its writer was killed, and the next record must not join it."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Complete records of a JSON-lines file, without a torn last line; an absent file has none."""
    if not path.exists():
        return []
    drop_torn_line(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
