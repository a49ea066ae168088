"""Output of a run for people and as JSON: on a terminal, without one, and chosen by an environment variable."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lam_spark.runtime.log import RunLog

# Moves the cursor up one line and erases it.
ERASE_LINE = "\x1b[1A\x1b[2K"


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove environment variables that describe the terminal."""
    for name in ("LAM_SPARK_LOG", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """Replace stderr by a stream whose text can be read."""
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def records(folder: Path) -> list[dict[str, Any]]:
    """Records in the log file of the run `r1`."""
    return [json.loads(line) for line in (folder / "r1.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("setting", "terminal", "human"),
    [
        ("", True, True),
        ("", False, False),
        ("human", False, True),
        ("json", True, False),
        ("something else", True, True),
    ],
)
def test_output_is_for_people_on_a_terminal_or_on_request(
    monkeypatch: pytest.MonkeyPatch, setting: str, terminal: bool, human: bool
) -> None:
    stderr(monkeypatch, terminal)
    monkeypatch.setenv("LAM_SPARK_LOG", setting)
    assert RunLog("r1", None).human is human


def test_for_people_stderr_has_lines_and_the_file_has_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = stderr(monkeypatch, terminal=False)
    monkeypatch.setenv("LAM_SPARK_LOG", "human")
    log = RunLog("r1", tmp_path / "logs")
    log.event("stage started", stage="train", note="größer")
    log.echo("[green]✓[/] [bold]train[/]  longer than a terminal is wide: " + 20 * "word ")
    log.status("[bold]train[/] 3 s")  # not shown without a terminal
    log.status(None)
    log.close()
    assert stream.getvalue() == "✓ train  longer than a terminal is wide: " + 20 * "word " + "\n"
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
def test_as_json_stderr_has_only_the_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool
) -> None:
    stream = stderr(monkeypatch, terminal)
    monkeypatch.setenv("LAM_SPARK_LOG", "json")
    log = RunLog("r1", tmp_path / "logs")
    log.event("mlflow run lost", level="warning", at_path=tmp_path)
    log.echo("✓ train")
    log.status("train 3 s")
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines == records(tmp_path / "logs")
    assert [(line["event"], line["level"], line["at_path"]) for line in lines] == [
        ("mlflow run lost", "warning", str(tmp_path))
    ]


def test_a_terminal_shows_a_status_line_and_erases_it_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = stderr(monkeypatch, terminal=True)
    log = RunLog("r1", None)
    log.status("[bold]train[/] 3 s")
    log.progress("epoch 2")
    log.status("[bold]train[/] 5 s")
    log.echo("✓ a line that stays")
    log.status(None)
    shown = stream.getvalue()
    assert "\x1b[1mtrain\x1b[0m 5 s · epoch 2" in shown
    assert "✓ a line that stays\n" in shown
    assert shown.rstrip("\r").endswith(ERASE_LINE)
    # The progress of the previous stage is not shown for the next one.
    log.status("score 1 s")
    log.close()
    assert "score 1 s" in stream.getvalue()
    assert "score 1 s · " not in stream.getvalue()
    assert stream.getvalue().rstrip("\r").endswith(ERASE_LINE)


def test_without_a_folder_no_file_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = stderr(monkeypatch, terminal=False)
    monkeypatch.chdir(tmp_path)
    log = RunLog("r1", None)
    log.event("run started")
    log.close()
    assert json.loads(stream.getvalue())["event"] == "run started"
    assert list(tmp_path.iterdir()) == []


def test_a_second_log_of_a_run_appends_to_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each record is written at once, so that it remains if the run is killed."""
    stderr(monkeypatch, terminal=False)
    first, second = RunLog("r1", tmp_path), RunLog("r1", tmp_path)
    for log in (first, second):
        log.event("run started")
        assert records(tmp_path)[-1]["event"] == "run started"
    assert len(records(tmp_path)) == 2
    first.close()
    second.close()


def test_secrets_in_texts_are_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog("r1", tmp_path)
    log.event("stage failed", error="cannot open jdbc:x://me:hush@host", facts={"api_key": "hush"})
    log.close()
    (record,) = records(tmp_path)
    assert (record["error"], record["facts"]) == ("cannot open jdbc:x://me:***@host", {"api_key": "***"})
    assert "hush" not in capsys.readouterr().err
