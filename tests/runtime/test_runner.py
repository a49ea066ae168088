"""The runner: a stage from start to audit entry, without Spark, and which sessions it stops."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError
from lam_spark.runtime import monitor, runner
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.results import StageResult
from lam_spark.stages import NIGHTLY, STAGES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "conf" / "complete_journey.yaml"
Capture = pytest.CaptureFixture[str]

# Line of a finished stage, in columns: name, seconds, memory, message.
LINE = re.compile(r"✓ (\S+) *(?<=^.{12}) ( *\d+\.\d) s ( *\d+\.\d) GiB  (\S.*)")


@dataclass(frozen=True)
class Ingested(StageResult):
    """A result with a message and detail lines."""

    text: str
    lines: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        return self.text

    @property
    def details(self) -> tuple[str, ...]:
        return self.lines


class FakeTables:
    """Tables that record the order of the actions on them."""

    def __init__(self) -> None:
        self.read_versions: dict[str, int] = {"one": 1, "two": 2}
        self.written_versions: dict[str, int] = {"three": 3}
        self.actions: list[str] = []

    def begin(self, stage: str) -> None:
        """Remember the running stage."""

    def start(self, stage: str) -> None:
        """Append an audit entry before the stage."""
        self.actions.append(f"start of {stage}")

    def append(self, stage: str, *rest: Any) -> None:
        """Append an audit entry."""
        self.actions.append(f"entry of {stage}")
        self.written_versions["audit"] = 7


def compact(tables: Any, name: str) -> int:
    """Record a compaction; `quarantine` fails."""
    tables.actions.append(f"compact {name}")
    if name == "quarantine":
        raise OSError("the disk is full: RAW-CUSTOMER-000123")
    return {"events": 33}.get(name, 0)


@pytest.fixture
def run_ingest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[FakeTables, StageResult | BaseException], None]:
    """Runs the stage `ingest`, which writes two tables and returns or raises the given outcome."""
    monkeypatch.setenv("LAM_SPARK_LOG", "human")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(monitor, "task_progress", lambda spark: (0, 0))
    monkeypatch.setattr(runner, "compact", compact)

    def run(tables: FakeTables, outcome: StageResult | BaseException) -> None:
        def ingest(ctx: Any) -> StageResult:
            ctx.tables.written_versions |= {"quarantine": 1, "events": 1}
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("lam_spark.events.stage.ingest", ingest)
        log = RunLog("r1", tmp_path)
        ctx: Any = SimpleNamespace(tables=tables, spark=None, log=log)
        chain: Any = tables
        try:
            runner._run_stage(ctx, chain, "ingest")
        finally:
            log.close()

    return run


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    """Log records of the run `r1` with this event, without time and run id."""
    lines = (folder / "r1.jsonl").read_text(encoding="utf-8").splitlines()
    matching = [record for record in map(json.loads, lines) if record["event"] == event]
    return [{k: v for k, v in record.items() if k not in ("at", "run_id", "event")} for record in matching]


def test_a_stage_prints_one_line_in_the_format_of_the_readme(capsys: Capture, run_ingest: Any) -> None:
    run_ingest(FakeTables(), Ingested("5 events of [red] and [/] others", ("", "AUC: [0.8]")))
    out, err = capsys.readouterr()
    line, *details = err.splitlines()
    match = LINE.fullmatch(line)
    assert match
    assert (match[1], len(match[2]), len(match[3])) == ("ingest", 6, 5)
    assert match[4] == "5 events of [red] and [/] others"  # brackets in a message are not markup
    assert [text.rstrip() for text in details] == ["", "  AUC: [0.8]"]
    assert out == ""
    readme_lines = [LINE.fullmatch(text) for text in README.splitlines() if text.startswith("✓")]
    assert [match and (match[1], len(match[2]), len(match[3])) for match in readme_lines] == [
        (name, 6, 5) for name in NIGHTLY
    ]


def test_small_files_are_compacted_after_the_audit_entry(run_ingest: Any, tmp_path: Path) -> None:
    """In all tables that the stage wrote, including the audit. A failed compaction does not fail the stage."""
    tables = FakeTables()
    run_ingest(tables, Ingested("5 events"))
    assert tables.actions == ["entry of ingest", "compact quarantine", "compact events", "compact audit"]
    assert records(tmp_path, "small files joined") == [{"level": "info", "table": "events", "files": 33}]
    assert records(tmp_path, "small files not joined") == [
        {"level": "warning", "table": "quarantine", "error": "OSError"}
    ]
    assert "RAW-CUSTOMER" not in (tmp_path / "r1.jsonl").read_text()


def test_a_stage_that_publishes_has_an_audit_entry_before_it_starts(
    run_ingest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name, stage in STAGES.items() if stage.publishes] == ["deliver"]
    publishing = dataclasses.replace(STAGES["ingest"], publishes=True)
    monkeypatch.setattr(runner, "STAGES", {"ingest": publishing})
    tables = FakeTables()
    run_ingest(tables, Ingested("5 events"))
    assert tables.actions[:2] == ["start of ingest", "entry of ingest"]


@pytest.mark.parametrize("error", [ValueError("RAW-CUSTOMER-000123"), KeyboardInterrupt()])
def test_a_failed_stage_has_an_audit_entry_and_no_compaction(
    capsys: Capture, run_ingest: Any, tmp_path: Path, error: BaseException
) -> None:
    tables = FakeTables()
    with pytest.raises(type(error)) as raised:
        run_ingest(tables, error)
    assert raised.value is error
    assert tables.actions == ["entry of ingest"]
    (record,) = records(tmp_path, "stage failed")
    assert (record["level"], record["stage"], record["error"]) == ("error", "ingest", type(error).__name__)
    assert records(tmp_path, "stage done") == records(tmp_path, "small files joined") == []
    assert capsys.readouterr().err == ""


def test_an_unknown_stage_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = load_config(SHIPPED, overrides=[f"root={tmp_path / 'root'}"])
    with pytest.raises(ConfigError, match=r"unknown stage 'trian': did you mean 'train'\?"):
        runner.run_stages(config, ["trian"])
    assert not (tmp_path / "root").exists()


class FakeSession:
    """A session that records whether it was stopped."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    ("is_passed", "is_active", "is_stopped"),
    [(True, False, False), (False, True, False), (False, False, True)],
    ids=["passed by the caller", "active before", "started by the runner"],
)
def test_only_a_session_that_the_runner_started_is_stopped(
    monkeypatch: pytest.MonkeyPatch, is_passed: bool, is_active: bool, is_stopped: bool
) -> None:
    session: Any = FakeSession()
    monkeypatch.setattr(runner, "active_session", lambda: session if is_active else None)
    monkeypatch.setattr(runner, "spark_session", lambda settings: session)
    with runner._session(load_config(SHIPPED), session if is_passed else None) as used:
        assert used is session
        assert not session.stopped
    assert session.stopped is is_stopped
