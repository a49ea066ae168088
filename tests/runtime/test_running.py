"""The audit entry of a stage whose run was killed, without Spark: the next run appends it once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.errors import AuditError
from lam_spark.runtime import audit
from lam_spark.runtime.audit import AuditChain, StageCost
from lam_spark.runtime.results import StageResult
from lam_spark.runtime.running import KILLED, RunningStage

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
COST = StageCost(1.0, None)
Chain = Callable[..., AuditChain]


class FakeTables:
    """Tables that keep the entries of the audit, of which a reader sees none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spark = None
        self.read_versions: dict[str, int] = {}
        self.written_versions: dict[str, int] = {}
        self.entries: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def exists(self, name: str) -> bool:
        """Whether the table is seen."""
        return False

    def append(self, rows: list[tuple[Any, ...]], name: str) -> None:
        """Append the entry of one row."""
        if self.error is not None:
            raise self.error
        self.entries += [json.loads(row[5]) for row in rows]
        self.written_versions[name] = len(self.entries) - 1


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    """Tables of a workspace."""
    monkeypatch.setattr(audit, "local_frame", lambda spark, rows, schema: rows)
    return FakeTables(tmp_path / "tables")


def config(as_of: str = "2017-03-13") -> Config:
    """The shipped configuration."""
    return load_config(SHIPPED, as_of)


@pytest.fixture
def chain(tables: FakeTables) -> Chain:
    """The audit as a run sees it: `chain(run id, as_of)`."""

    def chain_of(run_id: str, as_of: str = "2017-03-13") -> AuditChain:
        fake: Any = tables
        return AuditChain(fake, config(as_of), run_id)

    return chain_of


def test_the_next_run_appends_the_entry_of_a_killed_stage_once(tables: FakeTables, chain: Chain) -> None:
    chain("killed", "2017-03-06").begin("train")
    next_run = chain("next")
    killed = next_run.append_killed()
    assert killed is not None
    assert (killed.run_id, killed.stage) == ("killed", "train")
    (entry,) = tables.entries
    assert (entry["run_id"], entry["stage"], entry["status"]) == ("killed", "train", "failed")
    assert entry["error"] == KILLED
    assert entry["result"] is None
    # Of the killed run, whose configuration differs.
    assert (entry["as_of"], entry["config_digest"]) == ("2017-03-06", config("2017-03-06").digest())
    assert next_run.append_killed() is None
    assert chain("a third").append_killed() is None
    assert len(tables.entries) == 1


@pytest.mark.parametrize(("result", "error"), [(StageResult(), None), (None, "DataQualityError: too much")])
def test_a_stage_with_an_entry_was_not_killed(
    tables: FakeTables, chain: Chain, result: StageResult | None, error: str | None
) -> None:
    ended = chain("ended")
    ended.begin("ingest")
    ended.append("ingest", result, COST, error)
    assert chain("next").append_killed() is None
    assert [entry["status"] for entry in tables.entries] == ["failed" if error else "done"]


def test_the_entry_before_a_publishing_stage_is_not_its_end(tables: FakeTables, chain: Chain) -> None:
    killed = chain("killed")
    killed.begin("deliver")
    killed.start("deliver")
    assert chain("next").append_killed() is not None
    assert [entry["status"] for entry in tables.entries] == ["started", "failed"]


def test_a_failure_that_could_not_be_appended_keeps_its_error(tables: FakeTables, chain: Chain) -> None:
    failed = chain("failed")
    failed.begin("ingest")
    tables.error = OSError("the JVM has ended")
    with pytest.raises(OSError, match="the JVM has ended"):
        failed.append("ingest", None, COST, "interrupted by SIGTERM")
    tables.error = None
    assert chain("next").append_killed() is not None
    (entry,) = tables.entries
    assert (entry["run_id"], entry["error"]) == ("failed", "interrupted by SIGTERM")


def test_without_a_killed_run_nothing_is_appended(tables: FakeTables, chain: Chain) -> None:
    assert chain("first").append_killed() is None
    assert tables.entries == []


@pytest.mark.parametrize("content", ["", "[]", '{"run_id": "killed"}', '{"unknown": 1}'])
def test_the_file_of_another_version_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "running_stage.json"
    path.write_text(content)
    with pytest.raises(AuditError) as raised:
        RunningStage.read(path)
    assert str(raised.value) == (
        f"expected the stage of a killed run in {path}, as this version of lam_spark writes it; found another content. "
        "Run a stage with the version that wrote it, or delete the file: the audit then lacks an entry"
    )
