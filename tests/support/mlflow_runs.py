"""An MLflow database in a workspace, and a training folder with a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.model.artifact import CARD, WEIGHTS
from lam_spark.runtime.log import RunLog
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.tracking import Tracking
from tests.support.learnable import blocks, specification

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
UNREACHABLE = "http://user:password@127.0.0.1:9"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The shipped configuration with a workspace of the test's own."""
    return load_config(SHIPPED, overrides=[f"root={tmp_path / 'root'}"])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; creating one takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folder(config: Config, database: Path) -> Path:
    """A training folder with a model that is never opened."""
    (config.workspace / "mlflow").mkdir(parents=True)
    shutil.copy(database, config.workspace / "mlflow" / "mlflow.db")
    folder = config.workspace / "training"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / CARD).write_bytes(b"{}")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    """A specification with two blocks."""
    return specification(tmp_path / "blocks", [blocks(2)])


def epoch(number: int) -> dict[str, Any]:
    """Progress record of an epoch of pre-training with validation loss 1 / number."""
    return {
        "event": "epoch",
        "phase": "pre-training",
        "epoch": number,
        "tokens": 7,
        "validation loss": 1 / number,
    }


def tracking_of(config: Config, folder: Path, uri: str | None, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """Tracking at an address; None is the workspace's database."""
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Tracking(config, "a-run", folder, RunLog("a-run", config.workspace / "logs"))


def only_run(config: Config) -> tuple[MlflowClient, Any]:
    """The workspace's MLflow client and its only run."""
    uri = f"sqlite:///{config.workspace / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lam_spark").experiment_id])
    return client, run


def losses(client: MlflowClient, run: Any) -> dict[int, float]:
    """Step -> validation loss of pre-training."""
    history = client.get_metric_history(run.info.run_id, "pre-training.validation_loss")
    return {point.step: point.value for point in history}


def log_text(config: Config) -> str:
    """Text of the log file."""
    return (config.workspace / "logs" / "a-run.jsonl").read_text()


def log_events(config: Config) -> list[str]:
    """Events of the log file."""
    return [json.loads(line)["event"] for line in log_text(config).splitlines()]


class RefusingClient:
    """MLflow client with an expired token."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*arguments: Any, **named: Any) -> None:
            raise MlflowException(f"no {name} at {UNREACHABLE}", PERMISSION_DENIED)

        return refuse
