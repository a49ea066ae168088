"""MLflow run of a training while MLflow cannot be reached, refuses or has lost the run: nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.errors import ModelError
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.provenance import git_commit
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.registry import register_model
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.stage import _train
from tests.support.learnable import blocks, specification
from tests.support.mlflow_runs import (
    UNREACHABLE,
    config,
    database,
    epoch,
    folder,
    log_events,
    log_text,
    losses,
    only_run,
    spec,
    tracking_of,
)
from tests.training.test_summary import ON_CPU

__all__ = ["config", "database", "folder", "spec"]


def test_batches_are_sent_to_the_same_run_when_mlflow_accepts_requests_again(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(1))
        working_client = tracking.client
        tracking.client = MlflowClient(tracking_uri=UNREACHABLE, registry_uri=UNREACHABLE)
        tracking.log(epoch(2))
        tracking.log(epoch(3))
        client, run = only_run(config)
        assert losses(client, run) == {1: 1.0}
        tracking.client = working_client
        tracking.log(epoch(4))  # too soon for another try
        assert losses(client, run) == {1: 1.0}
        register_model(tracking, folder, "digest")
        assert losses(client, run) == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.25}
    assert log_events(config) == ["mlflow cannot be reached", "mlflow accepts requests again"]


def test_a_resumed_training_continues_its_run(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tracking_of(config, folder, None, monkeypatch).__enter__()
    first.start(spec, {})
    first.log(epoch(1))
    first.__exit__(ModelError, ModelError("a process died"), None)
    assert only_run(config)[1].info.status == "FAILED"
    with tracking_of(config, folder, None, monkeypatch) as second:
        assert only_run(config)[1].info.status == "RUNNING"
        second.start(spec, {})
        second.log(epoch(2))
    client, run = only_run(config)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == {1: 1.0, 2: 0.5}


def test_a_resumed_training_may_write_checkpoints_more_often(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        specification(tmp_path / "blocks", [blocks(2)], checkpoint_minutes=minutes) for minutes in (10, 1)
    )
    assert first.fingerprint() == second.fingerprint()
    for each in (first, second):
        with tracking_of(config, folder, None, monkeypatch) as tracking:
            tracking.start(each, {})
    assert only_run(config)[1].data.tags["training.checkpoint_minutes"] == "1.0"


def test_a_batch_that_mlflow_refuses_is_dropped_and_logged(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking._log_batch(params={"model.d_model": "another value"})
        tracking.log(epoch(1))
    client, run = only_run(config)
    assert (run.info.status, losses(client, run)) == ("FINISHED", {1: 1.0})
    assert run.data.params["model.d_model"] == str(spec.size.d_model)
    (record,) = map(json.loads, log_text(config).splitlines())
    assert (record["event"], record["names"]) == ("mlflow refuses a batch", ["model.d_model"])


def test_a_run_has_the_versions_of_code_and_libraries(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
    tags = only_run(config)[1].data.tags
    assert tags["lam_spark"] == __version__
    assert tags["git_commit"] == git_commit()
    assert torch.__version__.startswith(tags["version.torch"])  # without the build's local version


@pytest.mark.parametrize("deleted", [True, False])
def test_a_lost_run_is_replaced(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """The run is deleted, or unknown because the address names another server."""
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(1))
    client, run = only_run(config)
    client.delete_run(run.info.run_id)
    if not deleted:
        (folder / "mlflow_run").write_text("f" * 32)
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(2))
        register_model(tracking, folder, "digest")
    client, run = only_run(config)
    assert run.data.params["training.seed"] == str(spec.settings.seed)
    assert losses(client, run) == {2: 0.5}
    assert client.get_model_version("complete_journey", "1").run_id == run.info.run_id
    assert log_events(config) == ["mlflow run lost"]


def test_a_run_that_is_deleted_during_training_is_replaced(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {"training_blocks": 3})
        tracking.log(epoch(1))
        client, run = only_run(config)
        client.delete_run(run.info.run_id)
        tracking.log(epoch(2))
        register_model(tracking, folder, "digest")
    client, run = only_run(config)
    assert run.data.params["training.seed"] == str(spec.settings.seed)
    assert run.data.tags["delta.training_blocks"] == "3"
    assert losses(client, run) == {2: 0.5}
    assert log_events(config) == ["mlflow refuses", "mlflow run lost", "mlflow accepts requests again"]


def test_an_incomplete_last_line_of_the_spool_file_is_dropped(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, UNREACHABLE, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(1))
    with (folder / "mlflow_spool.jsonl").open("a") as spool:
        spool.write('{"metrics": [["pre-training.validation_lo')  # the disk was full
    with tracking_of(config, folder, UNREACHABLE, monkeypatch) as tracking:
        tracking.log(epoch(2))
    with tracking_of(config, folder, None, monkeypatch):
        pass
    assert losses(*only_run(config)) == {1: 1.0, 2: 0.5}


def test_the_costs_of_a_training_that_is_only_registered_are_logged(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver was killed before it read the last record."""
    spec = dataclasses.replace(spec, folder=str(folder))
    done = {"event": "done", "digest": "digest", "summary": ON_CPU.to_json()}
    lines = [json.dumps(record) + "\n" for record in (epoch(1), done)]
    (folder / PROGRESS_FILE).write_text("".join(lines))
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        assert _train(spec, tracking, RunLog("r1", None)) == done
    assert only_run(config)[1].data.metrics == ON_CPU.costs()
