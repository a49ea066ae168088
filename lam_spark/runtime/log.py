"""What a run says while it works: JSON lines for machines, short lines for people.

JSON lines go to stderr where it is not a terminal, and always to `logs/<run_id>.jsonl` in the workspace.
On a terminal people see one line a stage and a live line below it. `LAM_SPARK_LOG=human` or `json` chooses.
No record holds a raw customer id.
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


class Journal:
    """Log of one run.

    Args:
        run_id: put into every record.
        folder: where `<run_id>.jsonl` is written; None keeps no file (a dry run).
    """

    def __init__(self, run_id: str, folder: Path | None) -> None:
        self.run_id = run_id
        wish = os.environ.get("LAM_SPARK_LOG", "")
        self.human = wish == "human" or (wish != "json" and sys.stderr.isatty())
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._note = ""
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
            **facts,
        }
        line = json.dumps(record, default=str, ensure_ascii=False)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        if not self.human:
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Show people a line that stays (rich markup)."""
        if self.human:
            self._console.print(text)

    def note(self, text: str) -> None:
        """Add to the live line what the stage is at."""
        self._note = text

    def live(self, text: str | None) -> None:
        """Show people a line that is replaced by the next one; None takes it away."""
        if not (self.human and self._console.is_terminal):
            return
        if text is None:
            self._note = ""
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        text = f"{text} · {self._note}" if self._note else text
        if self._status is None:
            self._status = self._console.status(text, spinner="dots")
            self._status.start()
        else:
            self._status.update(text)

    def close(self) -> None:
        """Take the live line away and close the file."""
        self.live(None)
        if self._file is not None:
            self._file.close()
            self._file = None
