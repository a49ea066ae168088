"""What MLflow is told while it cannot be reached: nothing is lost, and it hears of it later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lam_spark.config import Config
from lam_spark.config_file import load_config
from lam_spark.errors import ModelError
from lam_spark.journal import Journal
from lam_spark.model.artifact import CARD, WEIGHTS
from lam_spark.training.registry import Tracking, registered_model
from lam_spark.training.spec import TrainingSpec

from .learnable import blocks, specification

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
NOWHERE = "http://127.0.0.1:9"


def epoch(number: int) -> dict[str, Any]:
    return {
        "event": "epoch",
        "phase": "pre-training",
        "epoch": number,
        "tokens": 7,
        "validation loss": 1 / number,
    }


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(SHIPPED, overrides=[f"root={tmp_path / 'root'}"])


@pytest.fixture
def folder(tmp_path: Path, config: Config) -> Path:
    """A training's folder with a model in it, which nobody opens here."""
    folder = config.workspace / "training"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / CARD).write_bytes(b"{}")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    return specification(tmp_path / "blocks", [blocks(2)])


def tracking(config: Config, folder: Path, uri: str | None, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    if uri is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Tracking(config, "a-run", folder, Journal("a-run", config.workspace / "logs"))


def known(config: Config) -> tuple[MlflowClient, Any]:
    """The workspace's MLflow and its only run."""
    uri = f"sqlite:///{config.workspace / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lam_spark").experiment_id])
    return client, run


def losses(client: MlflowClient, run: Any) -> dict[int, float]:
    history = client.get_metric_history(run.info.run_id, "pre-training.validation_loss")
    return {point.step: point.value for point in history}


def events(config: Config) -> list[str]:
    return [
        json.loads(line)["event"]
        for line in (config.workspace / "logs" / "a-run.jsonl").read_text().splitlines()
    ]


def test_a_model_waits_until_mlflow_answers(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, NOWHERE, monkeypatch) as down:
        down.start(spec, {"training_blocks": 3})
        for number in (1, 2):
            down.log(epoch(number))
        with pytest.raises(ModelError, match=f"it is trained and waits in {folder}"):
            down.register(folder, "digest")
    assert events(config) == ["mlflow cannot be reached"]
    with tracking(config, folder, None, monkeypatch) as up:
        up.start(spec, {"training_blocks": 3})
        version = up.register(folder, "digest")
    client, run = known(config)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.seed"] == str(spec.settings["seed"])
    assert run.data.tags["delta.training_blocks"] == "3"
    assert losses(client, run) == {1: 1.0, 2: 0.5}
    assert version == 1
    assert registered_model(config) == (b"weights", b"{}", "digest", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow_run", CARD, WEIGHTS]


def test_mlflow_is_told_in_the_same_run_when_it_answers_again(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        told.log(epoch(1))
        alive, told.client = told.client, MlflowClient(tracking_uri=NOWHERE, registry_uri=NOWHERE)
        told.log(epoch(2))
        told.log(epoch(3))
        client, run = known(config)
        assert losses(client, run) == {1: 1.0}
        told.client = alive
        told.log(epoch(4))  # too soon to try again
        assert losses(client, run) == {1: 1.0}
        told.register(folder, "digest")
        assert losses(client, run) == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.25}
    assert events(config) == ["mlflow cannot be reached", "mlflow answers again"]


def test_a_resumed_training_goes_on_with_its_run(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tracking(config, folder, None, monkeypatch).__enter__()
    first.start(spec, {})
    first.log(epoch(1))
    first.__exit__(ModelError, ModelError("a rank died"), None)
    assert known(config)[1].info.status == "FAILED"
    with tracking(config, folder, None, monkeypatch) as second:
        assert known(config)[1].info.status == "RUNNING"
        second.start(spec, {})
        second.log(epoch(2))
    client, run = known(config)
    assert run.info.status == "FINISHED"
    assert losses(client, run) == {1: 1.0, 2: 0.5}


def test_a_resumed_training_may_write_checkpoints_more_often(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        specification(tmp_path / "blocks", [blocks(2)], checkpoint_minutes=minutes) for minutes in (10, 1)
    )
    assert first.fingerprint() == second.fingerprint()
    for spec in (first, second):
        with tracking(config, folder, None, monkeypatch) as told:
            told.start(spec, {})
    assert known(config)[1].data.tags["training.checkpoint_minutes"] == "1.0"


def test_what_mlflow_refuses_is_no_outage(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        with pytest.raises(MlflowException, match=r"model\.width"):
            told._tell(params={"model.width": "another value"})
        told.log(epoch(1))
    client, run = known(config)
    assert (run.info.status, losses(client, run)) == ("FINISHED", {1: 1.0})


def test_a_torn_last_line_of_what_waits_is_dropped(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, NOWHERE, monkeypatch) as down:
        down.start(spec, {})
        down.log(epoch(1))
    with (folder / "mlflow_spool.jsonl").open("a") as spool:
        spool.write('{"metrics": [["pre-training.validation_lo')  # the disk was full
    with tracking(config, folder, NOWHERE, monkeypatch) as down:
        down.log(epoch(2))
    with tracking(config, folder, None, monkeypatch):
        pass
    assert losses(*known(config)) == {1: 1.0, 2: 0.5}
