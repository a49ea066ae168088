"""What people see of a run and what machines read: on a terminal, without one, and where a variable chooses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lam_spark.runtime.log import RunLog

# Erases a line above: how a terminal is told that the live line goes.
ERASED = "\x1b[1A\x1b[2K"


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing around the tests says what kind of terminal there is."""
    for name in ("LAM_SPARK_LOG", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """A stderr to read."""
    made = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def records(folder: Path) -> list[dict[str, Any]]:
    """The file of the run `r1`."""
    return [json.loads(line) for line in (folder / "r1.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("wish", "terminal", "human"),
    [
        ("", True, True),
        ("", False, False),
        ("human", False, True),
        ("json", True, False),
        ("something else", True, True),
    ],
)
def test_who_is_spoken_to(monkeypatch: pytest.MonkeyPatch, wish: str, terminal: bool, human: bool) -> None:
    stderr(monkeypatch, terminal)
    monkeypatch.setenv("LAM_SPARK_LOG", wish)
    assert RunLog("r1", None).human is human


def test_people_get_the_lines_and_the_file_the_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = stderr(monkeypatch, terminal=False)
    monkeypatch.setenv("LAM_SPARK_LOG", "human")
    log = RunLog("r1", tmp_path / "logs")
    log.event("stage started", stage="train", note="größer")
    log.echo("[green]✓[/] [bold]train[/]  longer than a terminal is wide: " + 20 * "word ")
    log.status("[bold]train[/] 3 s")  # there is no terminal to take a line away from
    log.status(None)
    log.close()
    assert seen.getvalue() == "✓ train  longer than a terminal is wide: " + 20 * "word " + "\n"
    (record,) = records(tmp_path / "logs")
    assert record.pop("at").endswith("+00:00")
    assert record == {
        "level": "info",
        "run_id": "r1",
        "event": "stage started",
        "stage": "train",
        "note": "größer",
    }


@pytest.mark.parametrize("terminal", [True, False])
def test_machines_get_the_records_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool
) -> None:
    seen = stderr(monkeypatch, terminal)
    monkeypatch.setenv("LAM_SPARK_LOG", "json")
    log = RunLog("r1", tmp_path / "logs")
    log.event("mlflow run lost", level="warning", at_path=tmp_path)
    log.echo("✓ train")
    log.status("train 3 s")
    log.close()
    lines = [json.loads(line) for line in seen.getvalue().splitlines()]
    assert lines == records(tmp_path / "logs")
    assert [(line["event"], line["level"], line["at_path"]) for line in lines] == [
        ("mlflow run lost", "warning", str(tmp_path))
    ]


def test_on_a_terminal_a_live_line_shows_where_a_stage_is_and_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = stderr(monkeypatch, terminal=True)
    log = RunLog("r1", None)
    log.status("[bold]train[/] 3 s")
    log.progress("epoch 2")
    log.status("[bold]train[/] 5 s")
    log.echo("✓ a line that stays")
    log.status(None)
    shown = seen.getvalue()
    assert "\x1b[1mtrain\x1b[0m 5 s · epoch 2" in shown
    assert "✓ a line that stays\n" in shown
    assert shown.rstrip("\r").endswith(ERASED)
    # The next stage begins without what the one before it was at.
    log.status("score 1 s")
    log.close()
    assert "score 1 s" in seen.getvalue()
    assert "score 1 s · " not in seen.getvalue()
    assert seen.getvalue().rstrip("\r").endswith(ERASED)


def test_a_dry_run_keeps_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = stderr(monkeypatch, terminal=False)
    monkeypatch.chdir(tmp_path)
    log = RunLog("r1", None)
    log.event("run started")
    log.close()
    assert json.loads(seen.getvalue())["event"] == "run started"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_adds_to_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And each record is there as soon as it was told: a run that is killed leaves them."""
    stderr(monkeypatch, terminal=False)
    first, second = RunLog("r1", tmp_path), RunLog("r1", tmp_path)
    for log in (first, second):
        log.event("run started")
        assert records(tmp_path)[-1]["event"] == "run started"
    assert len(records(tmp_path)) == 2
    first.close()
    second.close()
