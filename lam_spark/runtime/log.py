"""Log of a run: JSON lines for machines, short lines and a live status line for people.

JSON lines go to stderr where it is not a terminal, and always to `logs/<run_id>.jsonl` in the workspace. On a
terminal people see one line per stage and a status line below it. `LAM_SPARK_LOG=human` or `json` chooses. No
record holds a raw customer id, and secrets in texts are masked.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.status import Status

from lam_spark.masking import masked_values


class RunLog:
    """Log of one run.

    Args:
        run_id: Part of every record.
        folder: Where `<run_id>.jsonl` is written; None writes no file.
    """

    def __init__(self, run_id: str, folder: Path | None) -> None:
        self.run_id = run_id
        choice = os.environ.get("LAM_SPARK_LOG", "")
        self.human = choice == "human" or (choice != "json" and sys.stderr.isatty())
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._progress = ""
        self._file: IO[str] | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{run_id}.jsonl").open("a", encoding="utf-8")

    def event(self, event: str, level: str = "info", **facts: Any) -> None:
        """Write one machine-readable record."""
        record = {
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "run_id": self.run_id,
            "event": event,
            **masked_values(facts),
        }
        line = json.dumps(record, default=str, ensure_ascii=False)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        if not self.human:
            print(line, file=sys.stderr, flush=True)

    def echo(self, text: str) -> None:
        """Show people a permanent line (rich markup)."""
        if self.human:
            self._console.print(text)

    def progress(self, text: str) -> None:
        """Set the part of the status line that shows the progress of the stage."""
        self._progress = text

    def status(self, text: str | None) -> None:
        """Show people a line that the next one replaces; None removes it."""
        if not (self.human and self._console.is_terminal):
            return
        if text is None:
            self._progress = ""
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        text = f"{text} · {self._progress}" if self._progress else text
        if self._status is None:
            self._status = self._console.status(text, spinner="dots")
            self._status.start()
        else:
            self._status.update(text)

    def close(self) -> None:
        """Remove the status line and close the file."""
        self.status(None)
        if self._file is not None:
            self._file.close()
            self._file = None
