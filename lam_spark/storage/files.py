"""Files of JSON lines in a training's folder, whose writer may be killed, or find the disk full, as it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def drop_torn_line(file: Path) -> None:
    """What was being written when the writer ended is no record, and must not run into the next one."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def whole_records(file: Path) -> list[dict[str, Any]]:
    """All records of a file, without a torn last line; none where there is no file."""
    if not file.exists():
        return []
    drop_torn_line(file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
