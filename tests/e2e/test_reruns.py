"""More runs in the workspace of the full run: reruns, refusals, damage, killed processes. Runs as the last file."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import fcntl
import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession

from lam_spark.cli import run_job
from lam_spark.runtime.context import RunContext
from lam_spark.runtime.results import StageResult
from lam_spark.storage.tables import maintenance
from tests.support.runs import (
    Finished,
    commit_info,
    files,
    rows,
    rows_without_run,
    start,
    stop_when,
    versions,
)
from tests.support.shop import key_of, keys_of, statement

REBUILD = ("--set", "ingest.rebuild=true")
# Spark quotes a row in the error of this select: raw ids are not numbers.
QUOTING = (
    "channels.shop.select=SELECT customer AS customer_id, bought_at AS event_time, basket AS event_key, "
    "CAST(customer AS DOUBLE) AS amount FROM purchases"
)


class Stage:
    """Runs a stage in the session of the tests. Returns exit code and summary.

    Attributes:
        stdout, stderr: Output of the newest stage.
    """

    def __init__(self, conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.stdout, self.stderr = "", ""
        self._conf, self._capsys = conf, capsys

    def __call__(self, name: str, *flags: str) -> tuple[int, dict[str, Any]]:
        self._capsys.readouterr()
        code = run_job(name, ["--conf", str(self._conf), *flags])
        self.stdout, self.stderr = self._capsys.readouterr()
        return code, json.loads(self.stdout.splitlines()[-1])


@pytest.fixture
def stage(finished: Finished, spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> Stage:
    """Runs stages on the workspace of the full run."""
    return Stage(finished.data.conf, capsys)


def all_columns(root: Path, name: str) -> list[tuple[Any, ...]]:
    """Sorted rows of a table, with all columns."""
    return sorted((tuple(row.values()) for row in rows(root, name)), key=repr)


def log_text(root: Path, summary: dict[str, Any]) -> str:
    """Log file of a run."""
    return (root / "logs" / f"{summary['run_id']}.jsonl").read_text(encoding="utf-8")


def events(root: Path, summary: dict[str, Any], event: str) -> list[dict[str, Any]]:
    """Log records of a run with this event."""
    records = map(json.loads, log_text(root, summary).splitlines())
    return [record for record in records if record["event"] == event]


def last_entry(root: Path) -> dict[str, Any]:
    """Newest row of the audit."""
    return max(rows(root, "audit"), key=lambda row: row["sequence"])


def test_scoring_again_gives_the_same_scores(finished: Finished, stage: Stage) -> None:
    before = rows_without_run(finished.root, "scores")
    code, summary = stage("score")
    assert code == 0
    assert rows_without_run(finished.root, "scores") == before
    assert {row["run_id"] for row in rows(finished.root, "scores")} == {summary["run_id"]}


def test_embed_replaces_only_the_embeddings_of_its_day(embedded: Finished, stage: Stage) -> None:
    def of_day(day: str) -> dict[str, dict[str, Any]]:
        at = pd.Timestamp(embedded.data.config().instant(dt.date.fromisoformat(day))).tz_localize(None)
        day_rows = [row for row in rows(embedded.root, "embeddings") if row["as_of"] == at]
        by_customer = {row["customer_key"]: row for row in day_rows}
        assert len(by_customer) == len(day_rows)
        return by_customer

    def embeddings(by_customer: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
        return {key: row["embedding"] for key, row in by_customer.items()}

    first = of_day("2023-12-20")
    code, _ = stage("embed", "--as-of", "2023-06-01", "--set", "embeddings.purpose=direct_marketing")
    assert code == 0
    earlier = of_day("2023-06-01")
    assert earlier.keys() == keys_of(embedded.data.contact)
    assert of_day("2023-12-20") == first
    code, summary = stage("embed")
    assert code == 0
    again = of_day("2023-12-20")
    assert {row["run_id"] for row in again.values()} == {summary["run_id"]}
    assert embeddings(again) == embeddings(first)
    assert of_day("2023-06-01") == earlier


def test_a_customer_who_opts_out_after_scoring_is_withheld(finished: Finished, stage: Stage) -> None:
    listed = sorted(rows(finished.root, "contact_list"), key=lambda row: row["rank"])
    first = listed[0]["customer_key"]
    ids = {key_of(raw): raw for raw in finished.data.contact}
    opt_out = statement(ids[first], "direct_marketing", "opt_out", "2024-01-01T00:00:00Z")
    with (finished.root / "raw" / "consent_statements.csv").open("a", newline="") as file:
        csv.writer(file).writerow(opt_out.values())
    code, summary = stage("deliver")  # also updates the consent ledger
    assert code == 0
    counts = summary["stages"]["deliver"]
    assert counts["statements_new"] == 1
    assert (counts["suppressed_by_consent"], counts["delivered"]) == (1, 50)
    assert counts["below_capacity"] == len(finished.data.contact) - 51
    new_list = sorted(rows(finished.root, "contact_list"), key=lambda row: row["rank"])
    assert [row["customer_key"] for row in new_list[:49]] == [row["customer_key"] for row in listed[1:]]
    assert [row["rank"] for row in new_list] == list(range(1, 51))
    text = (finished.root / "delivery" / "contact_list_2023-12-20.csv").read_text()
    assert first not in text
    assert new_list[-1]["customer_key"] in text


def test_a_concurrent_run_is_refused(finished: Finished, stage: Stage) -> None:
    before = versions(finished.root)
    with (finished.root / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, summary = stage("deliver")
    assert code == summary["exit_code"] == 6
    assert "another run holds the workspace" in summary["error"]
    assert versions(finished.root) == before
    code, _ = stage("deliver")
    assert code == 0


def test_a_damaged_model_is_not_used_for_scoring(finished: Finished, stage: Stage) -> None:
    (weights,) = (finished.root / "mlflow").rglob("model.safetensors")
    original = weights.read_bytes()
    version = versions(finished.root)["scores"]
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        code, summary = stage("score")
    finally:
        weights.write_bytes(original)
    assert code == 5
    assert "they were changed or damaged" in summary["error"]
    assert versions(finished.root)["scores"] == version


@pytest.mark.parametrize(
    ("name", "flags", "code", "message"),
    [
        ("sequences", ("--as-of", "2022-12-31"), 2, "as_of 2022-12-31 is outside the data"),
        ("deliver", ("--as-of", "2023-12-19"), 2, "no scores for as_of 2023-12-19"),
        (
            "ingest",
            ("--set", "inputs.purchases.path=/nowhere.parquet"),
            2,
            "expected parquet at /nowhere.parquet",
        ),
        ("ingest", (*REBUILD, "--set", "quality.max_quarantine_share=0"), 3, "Nothing was published"),
        (
            "consent",
            ("--set", "inputs.consent_statements.path={empty}"),
            4,
            "the consent ledger has no statements",
        ),
        ("score", ("--set", "scoring.alias=unknown"), 5, "found none: run the stage 'train'"),
        ("embed", ("--set", "embeddings.purpose=research"), 4, "eligible for the purpose 'research'"),
    ],
)
def test_a_failed_stage_has_its_exit_code_and_publishes_nothing(
    finished: Finished,
    stage: Stage,
    tmp_path: Path,
    name: str,
    flags: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("customer,purpose,state,effective_at,recorded_at,source\n")
    before = versions(finished.root)
    exit_code, summary = stage(name, *(flag.replace("{empty}", str(empty)) for flag in flags))
    assert (exit_code, summary["exit_code"], summary["status"]) == (code, code, "failed")
    assert message in summary["error"]
    after = versions(finished.root)
    # The failure has an entry, and so has the start of a stage that publishes.
    assert after.pop("audit") == before.pop("audit") + (2 if name == "deliver" else 1)
    assert after == before
    last = last_entry(finished.root)
    assert (last["stage"], last["status"], last["run_id"]) == (name, "failed", summary["run_id"])


def test_a_root_that_is_not_writable_is_refused(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, summary = stage("ingest", "--set", f"root={tmp_path / 'file' / 'shop'}")
    assert code == 2
    assert "expected a writable folder" in summary["error"]


@pytest.mark.parametrize("show_values", ["", "1"], ids=["by default", "with values shown"])
def test_errors_store_no_raw_id_and_show_one_only_on_request(
    finished: Finished, stage: Stage, monkeypatch: pytest.MonkeyPatch, show_values: str
) -> None:
    monkeypatch.setenv("LAM_SPARK_SHOW_VALUES", show_values)
    code, summary = stage("ingest", *REBUILD, "--set", QUOTING)
    error = "NumberFormatException [CAST_INVALID_INPUT]"
    assert (code, summary["status"], summary["error"]) == (1, "failed", error)
    assert "RAW-CUSTOMER" not in stage.stdout
    assert error in log_text(finished.root, summary)
    assert "RAW-CUSTOMER" not in log_text(finished.root, summary)
    last = last_entry(finished.root)
    assert (last["run_id"], json.loads(last["entry"])["error"]) == (summary["run_id"], error)
    assert "RAW-CUSTOMER" not in last["entry"]
    # The stack trace is always shown.
    assert re.search(r'File ".*/lam_spark/events/stage\.py", line \d+, in ingest', stage.stderr)
    hint = (
        f"lam-spark ingest: {error} (its text may quote a customer's row; LAM_SPARK_SHOW_VALUES=1 shows it)\n"
    )
    assert ("RAW-CUSTOMER" in stage.stderr, stage.stderr.endswith(hint)) == (
        bool(show_values),
        not show_values,
    )


def test_a_failing_process_shows_no_raw_id(finished: Finished) -> None:
    """The JVM writes to the same stderr and shows none either."""
    process = start("ingest", "--conf", str(finished.data.conf), *REBUILD, "--set", QUOTING)
    stdout, stderr = process.communicate(timeout=300)
    if process.returncode != 1 or "CAST_INVALID_INPUT" not in stdout:
        raise RuntimeError(f"unexpected failure: {stdout[-500:]}{stderr[-2000:]}")
    assert "RAW-CUSTOMER" not in stdout + stderr


def registered(finished: Finished) -> tuple[int, str]:
    """Number of registered versions, and the version with the alias."""
    uri = f"sqlite:///{finished.root / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    model_versions = client.search_model_versions("name = 'small_shop'")
    return len(model_versions), str(client.get_model_version_by_alias("small_shop", "champion").version)


def training_processes() -> list[psutil.Process]:
    """Training processes among the children of this process."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.cmdline()[1:3] == ["-m", "lam_spark.training.launch.worker"]:
                processes.append(process)
    return processes


def test_after_a_training_process_is_killed_no_model_is_registered_and_the_next_run_resumes(
    finished: Finished, stage: Stage
) -> None:
    before = registered(finished)
    killed_pids: list[int] = []
    folder = finished.root / "training"

    def kill_one() -> None:
        """Kill one of the two processes after the first checkpoint."""
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/checkpoint-*-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in training_processes():
            process.kill()
            killed_pids.append(process.pid)
            return

    settings = {"pretrain_epochs": 4, "finetune_epochs": 1, "checkpoint_minutes": 0}
    flags = [flag for key, value in settings.items() for flag in ("--set", f"training.{key}={value}")]
    thread = threading.Thread(target=kill_one)
    thread.start()
    code, summary = stage("train", *flags)
    thread.join()
    assert killed_pids
    assert code == 5
    assert "training stopped with exit code" in summary["error"]
    assert registered(finished) == before == (1, "1")
    assert training_processes() == []

    code, summary = stage("train", *flags)
    assert code == 0, summary
    assert registered(finished) == (2, "2")
    (resumed,) = events(finished.root, summary, "resumed")
    assert resumed["phase"] == "pre-training"
    assert 1 <= resumed["epoch"] < 4
    uri = f"sqlite:///{finished.root / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    run = client.get_run(client.get_model_version("small_shop", "2").run_id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "pre-training.validation_loss")
    assert sorted({point.step for point in history}) == list(range(5))  # of both runs
    assert not folder.exists()


def kill_when(condition: Callable[[], bool], finished: Finished) -> str:
    """Start a rebuild of the events in its own process, and kill it once a condition holds. Returns its run id.

    Asserts that its lock names its JVM.
    """
    process = start("ingest", "--conf", str(finished.data.conf), *REBUILD)
    children: dict[int, str] = {}

    def kill() -> None:
        children.update({child.pid: child.name() for child in psutil.Process(process.pid).children()})
        process.kill()

    stop_when(condition, process, kill, timeout=120)
    assert process.returncode == -signal.SIGKILL
    holder = json.loads((finished.root / ".lock").read_text())
    assert children[holder["jvm"]["pid"]] == "java"
    return str(holder["run_id"])


def killed_entries(root: Path, run_id: str) -> list[tuple[str, str, str]]:
    """Stage, status and first word of the error of all audit entries of a killed run."""
    entries = [row for row in rows(root, "audit") if row["run_id"] == run_id]
    return [(row["stage"], row["status"], json.loads(row["entry"])["error"].split(":")[0]) for row in entries]


def test_a_run_killed_while_staging_does_not_change_the_tables(finished: Finished, stage: Stage) -> None:
    before = versions(finished.root)
    rows_before = rows_without_run(finished.root, "events")
    staging = finished.root / "staging"
    killed_run = kill_when(lambda: bool(list(staging.glob("*/*.parquet"))), finished)
    assert staging.exists()  # it was killed while staging
    assert versions(finished.root) == before
    assert rows_without_run(finished.root, "events") == rows_before
    code, summary = stage("ingest", *REBUILD)
    assert code == 0
    assert summary["stages"]["ingest"].items() >= finished.data.expected.items()
    assert rows_without_run(finished.root, "events") == rows_before
    assert not staging.exists()
    assert killed_entries(finished.root, killed_run) == [("ingest", "failed", "killed")]


def test_a_run_killed_while_publishing_is_rolled_back(finished: Finished, stage: Stage) -> None:
    published = ("events", "quarantine", "unresolved", "reconciliation", "ingestion_state")
    before = {name: all_columns(finished.root, name) for name in published}
    marker, good_versions = finished.root / "tables" / "publication.json", versions(finished.root)

    def publishing() -> bool:
        return marker.exists() and versions(finished.root)["events"] > good_versions["events"]

    killed_run = kill_when(publishing, finished)
    assert marker.exists()
    partial_versions = versions(finished.root)
    changed = [name for name in published if partial_versions[name] > good_versions[name]]
    assert "events" in changed
    assert all_columns(finished.root, "events") != before["events"]  # the same events with another run id
    code, summary = stage("ingest")  # every run first rolls back an unfinished publication
    assert code == 0
    assert {name: all_columns(finished.root, name) for name in published} == before
    assert not marker.exists()
    (record,) = events(finished.root, summary, "unfinished publication rolled back")
    assert sorted(record["tables"]) == sorted(changed)
    assert killed_entries(finished.root, killed_run) == [("ingest", "failed", "killed")]
    # Each changed table has one more commit, the RESTORE, and the audit an entry of each run. No rows were ingested.
    assert versions(finished.root) == partial_versions | {
        name: partial_versions[name] + 1 for name in changed
    } | {"audit": partial_versions["audit"] + 2}
    for name in changed:
        restored = commit_info(finished.root, name)
        assert (restored["operation"], int(restored["operationParameters"]["version"])) == (
            "RESTORE",
            good_versions[name],
        )


def test_an_interrupted_stage_has_an_audit_entry_and_releases_the_lock(
    finished: Finished, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(ctx: RunContext) -> StageResult:
        raise KeyboardInterrupt

    before = versions(finished.root)
    with monkeypatch.context() as patch:
        patch.setattr("lam_spark.consent.stage.update_consent", interrupted)
        code, summary = stage("consent")
    assert (code, summary["exit_code"], summary["status"]) == (130, 130, "interrupted")
    assert stage.stderr.endswith("lam-spark consent: interrupted; the last good tables are unchanged\n")
    assert versions(finished.root) == before | {"audit": before["audit"] + 1}
    last = last_entry(finished.root)
    assert (last["stage"], last["status"], last["run_id"]) == ("consent", "failed", summary["run_id"])
    assert json.loads(last["entry"])["error"] == "KeyboardInterrupt"
    code, _ = stage("consent")
    assert code == 0


def test_a_finished_stage_prints_one_line_and_compacts_small_files(
    finished: Finished, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_COMMITS_BETWEEN_COMPACTIONS", 1)
    monkeypatch.setenv("LAM_SPARK_LOG", "human")
    before, small_files = rows(finished.root, "audit"), len(files(finished.root, "audit"))
    version = versions(finished.root)["audit"]
    code, summary = stage("consent")
    assert code == 0
    joined = {r["table"]: r["files"] for r in events(finished.root, summary, "small files joined")}
    assert joined["audit"] == small_files + 1
    assert len(files(finished.root, "audit")) == 1
    assert commit_info(finished.root, "audit")["operation"] == "OPTIMIZE"
    assert versions(finished.root)["audit"] == version + 2
    after = sorted(rows(finished.root, "audit"), key=lambda row: row["sequence"])
    assert after[:-1] == sorted(before, key=lambda row: row["sequence"])
    assert after[-1]["run_id"] == summary["run_id"]
    assert re.fullmatch(
        r"✓ consent    +\d+\.\d s +\d+\.\d GiB  [\d,]+ statements read, 0 new\n", stage.stderr
    )


def test_report_fails_on_a_broken_audit_chain(finished: Finished, stage: Stage, spark: SparkSession) -> None:
    def rewrite(old: str, new: str) -> None:
        """Change the text of the second audit entry."""
        audit = finished.root / "tables" / "audit"
        spark.sql(f"UPDATE delta.`{audit}` SET entry = replace(entry, '{old}', '{new}') WHERE sequence = 1")

    entry = next(row["entry"] for row in rows(finished.root, "audit") if row["sequence"] == 1)
    row_count = int(re.findall(r'"rows_in": (\d+)', entry)[0])
    count, other = f'"rows_in": {row_count}', f'"rows_in": {row_count - 1}'
    assert other not in entry
    report = Path(finished.summary["report"])
    before = report.read_bytes()
    rewrite(count, other)
    code, summary = stage("report")
    rewrite(other, count)  # the next test verifies the chain
    assert (code, summary["exit_code"], summary["status"]) == (1, 1, "failed")
    message = f"the audit chain breaks at entry 1 (stage ingest, run {finished.summary['run_id']})"
    assert summary["error"].startswith(message)
    assert f"lam-spark report: AuditError: {message}" in stage.stderr
    assert report.read_bytes() == before
    last = last_entry(finished.root)
    assert (last["stage"], last["status"], last["run_id"]) == ("report", "failed", summary["run_id"])


def test_the_audit_chain_is_valid_after_all_runs(finished: Finished, spark: SparkSession) -> None:
    from lam_spark.runtime.audit import verify_chain
    from lam_spark.storage.tables.store import Tables

    tables = Tables(spark, finished.root / "tables")
    assert verify_chain(tables) == len(rows(finished.root, "audit")) > 11
