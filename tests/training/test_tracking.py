"""What MLflow is told while it cannot be reached, refuses or has lost the run: it hears of it later."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.errors import ModelError
from lam_spark.model.artifact import CARD, WEIGHTS
from lam_spark.runtime.context import Run
from lam_spark.runtime.log import Journal
from lam_spark.runtime.provenance import git_commit
from lam_spark.training import tracking as registry
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.spec import LOG_FILE, SPEC_FILE, TrainingSpec
from lam_spark.training.stage import _trained
from lam_spark.training.tracking import Tracking, registered_model
from tests.support.learnable import blocks, specification

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
NOWHERE = "http://somebody:password@127.0.0.1:9"


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


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's, empty: to make one takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folder(config: Config, database: Path) -> Path:
    """A training's folder with a model in it, which nobody opens here."""
    (config.workspace / "mlflow").mkdir(parents=True)
    shutil.copy(database, config.workspace / "mlflow" / "mlflow.db")
    folder = config.workspace / "training"
    folder.mkdir()
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


def journal(config: Config) -> str:
    return (config.workspace / "logs" / "a-run.jsonl").read_text()


def events(config: Config) -> list[str]:
    return [json.loads(line)["event"] for line in journal(config).splitlines()]


class Refusing:
    """MLflow's client with a token that has ended."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*arguments: Any, **named: Any) -> None:
            raise MlflowException(f"no {name} at {NOWHERE}", PERMISSION_DENIED)

        return refuse


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


def test_a_batch_that_mlflow_refuses_is_dropped_and_told(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        told._tell(params={"model.d_model": "another value"})
        told.log(epoch(1))
    client, run = known(config)
    assert (run.info.status, losses(client, run)) == ("FINISHED", {1: 1.0})
    assert run.data.params["model.d_model"] == str(spec.size.d_model)
    (record,) = map(json.loads, journal(config).splitlines())
    assert (record["event"], record["names"]) == ("mlflow refuses a batch", ["model.d_model"])


def test_a_token_that_ends_does_not_end_the_training(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        told.log(epoch(1))
        monkeypatch.setattr(told, "client", Refusing())
        told.log(epoch(2))
        told.log(epoch(3))
        with pytest.raises(
            ModelError, match=r"MLflow refuses \(PERMISSION_DENIED\), so .* waits in"
        ) as raised:
            told.register(folder, "digest")
    assert events(config) == ["mlflow refuses"]
    assert "password" not in f"{raised.value}{journal(config)}"
    with tracking(config, folder, None, monkeypatch) as told:
        told.register(folder, "digest")
    assert losses(*known(config)) == {1: 1.0, 2: 0.5, 3: 1 / 3}


def test_a_registry_that_refuses_leaves_the_model_waiting(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        monkeypatch.setattr(told.client, "create_model_version", Refusing().create_model_version)
        with pytest.raises(ModelError, match=r"MLflow refuses \(PERMISSION_DENIED\), so .* waits in"):
            told.register(folder, "digest")


def test_a_store_that_does_not_take_the_files_leaves_the_model_waiting(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients raise errors of their own, which may quote an address with a password in it."""
    store = config.workspace / "mlflow" / "artifacts"
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        store.write_text("in the way")
        expected = r"MLflow's store of files refuses: \w+Error, so the model is not registered: .* waits in"
        with pytest.raises(ModelError, match=expected):
            told.register(folder, "digest")
        store.unlink()
        assert told.register(folder, "digest") == 1


def test_a_run_says_which_code_and_libraries_it_was_made_by(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
    tags = known(config)[1].data.tags
    assert tags["lam_spark"] == __version__
    assert tags["git_commit"] == git_commit()
    assert torch.__version__.startswith(tags["version.torch"])  # which leaves out how it was built


@pytest.mark.parametrize("deleted", [True, False])
def test_another_run_is_begun_when_the_first_is_lost(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """Deleted, or unknown since another server is asked."""
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        told.log(epoch(1))
    client, run = known(config)
    client.delete_run(run.info.run_id)
    if not deleted:
        (folder / "mlflow_run").write_text("f" * 32)
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {})
        told.log(epoch(2))
        told.register(folder, "digest")
    client, run = known(config)
    assert run.data.params["training.seed"] == str(spec.settings["seed"])
    assert losses(client, run) == {2: 0.5}
    assert client.get_model_version("complete_journey", "1").run_id == run.info.run_id
    assert events(config) == ["mlflow run lost"]


def test_a_run_that_is_deleted_while_it_trains_is_replaced(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking(config, folder, None, monkeypatch) as told:
        told.start(spec, {"training_blocks": 3})
        told.log(epoch(1))
        client, run = known(config)
        client.delete_run(run.info.run_id)
        told.log(epoch(2))
        told.register(folder, "digest")
    client, run = known(config)
    assert run.data.params["training.seed"] == str(spec.settings["seed"])
    assert run.data.tags["delta.training_blocks"] == "3"
    assert losses(client, run) == {2: 0.5}
    assert events(config) == ["mlflow refuses", "mlflow run lost", "mlflow answers again"]


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


def test_scoring_says_what_is_wrong_with_the_registry(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    with pytest.raises(ModelError, match=r"but MLflow cannot be reached \(INTERNAL_ERROR\)") as raised:
        registered_model(config)
    assert "password" not in str(raised.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    none = "'complete_journey' with the alias 'champion', found none: run the stage 'train'"
    with pytest.raises(ModelError, match=none):
        registered_model(config)
    with tracking(config, folder, None, monkeypatch) as told:
        told.register(folder, "digest")
    client, _ = known(config)
    client.delete_registered_model_alias("complete_journey", "champion")
    with pytest.raises(ModelError, match=none):
        registered_model(config)
    monkeypatch.setattr(registry, "_client", lambda config: Refusing())
    with pytest.raises(ModelError, match=r"but MLflow refuses \(PERMISSION_DENIED\)") as raised:
        registered_model(config)
    assert "password" not in str(raised.value)


def test_a_database_that_does_not_answer_is_mlflow_that_does_not(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened when the client is made; a server is only asked later."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    uri = f"sqlite:///{config.workspace}"  # a folder
    with tracking(config, folder, uri, monkeypatch) as down:
        down.start(spec, {})
        down.log(epoch(1))
        with pytest.raises(
            ModelError, match=r"cannot be reached \(TEMPORARILY_UNAVAILABLE\), so .* waits in"
        ):
            down.register(folder, "digest")
    assert events(config) == ["mlflow cannot be reached"]
    with pytest.raises(ModelError, match=r"but MLflow cannot be reached \(TEMPORARILY_UNAVAILABLE\)"):
        registered_model(config)
    with tracking(config, folder, None, monkeypatch):
        pass
    assert losses(*known(config)) == {1: 1.0}


def test_nothing_is_left_of_a_model_that_was_fetched(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a server, whose artifacts lie elsewhere: a night fetches it several times."""
    with tracking(config, folder, None, monkeypatch) as told:
        told.register(folder, "digest")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    asked = []
    fetch = MlflowClient.download_artifacts

    def fetched(self: MlflowClient, run_id: str, path: str, dst_path: str | None = None) -> str:
        found = fetch(self, run_id, path, dst_path)
        asked.append(Path(found).is_relative_to(place))
        return found

    monkeypatch.setattr(MlflowClient, "download_artifacts", fetched)
    assert registered_model(config)[:2] == (b"weights", b"{}")
    assert asked == [True]
    assert not list(place.iterdir())


def test_a_model_is_registered_once(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is still there when the run was killed before it swept it."""
    for digest, version in (("digest", 1), ("digest", 1), ("another", 2)):
        with tracking(config, folder, None, monkeypatch) as told:
            assert told.register(folder, digest) == version
            assert registered_model(config)[2:] == (digest, version)


def test_what_a_training_took_is_told_when_it_is_only_registered(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver was killed before it read the last record."""
    spec = dataclasses.replace(spec, folder=str(folder))
    done = {
        "event": "done",
        "digest": "digest",
        "facts": {"seconds": 12.5, "tokens": 7, "validation_AUC": 0.7},
    }
    lines = [json.dumps(record) + "\n" for record in (epoch(1), done)]
    (folder / PROGRESS_FILE).write_text("".join(lines))
    run = SimpleNamespace(config=config)
    with tracking(config, folder, None, monkeypatch) as told:
        assert _trained(cast(Run, run), told, spec) == done
    assert known(config)[1].data.metrics == {"seconds": 12.5, "tokens": 7.0}


def test_the_ranks_log_stays_where_it_is(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / SPEC_FILE).write_text("{}")
    (folder / LOG_FILE).write_text("a customer's row")
    with tracking(config, folder, None, monkeypatch) as told:
        told.register(folder, "digest")
    client, run = known(config)
    kept = [
        file.path for place in ("model", "training") for file in client.list_artifacts(run.info.run_id, place)
    ]
    assert kept == [f"model/{CARD}", f"model/{WEIGHTS}", f"training/{SPEC_FILE}"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server, which keeps its files in `served`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served, log = tmp_path / "served", tmp_path / "server.log"
    served.mkdir()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{served / 'mlflow.db'}",
        "--artifacts-destination",
        str(served),
    ]
    with log.open("w") as says:
        process = subprocess.Popen(command, stdout=says, stderr=says, cwd=served, start_new_session=True)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
def test_a_server_keeps_the_models_in_its_own_store(
    config: Config,
    folder: Path,
    spec: TrainingSpec,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two data sets share it: neither's models lie in the other's workspace."""
    for name in ("first", "second"):
        asked = config.model_copy(update={"name": name})
        (folder / "mlflow_run").unlink(missing_ok=True)
        with tracking(asked, folder, server, monkeypatch) as told:
            told.start(spec, {"training_blocks": 3})
            assert told.register(folder, f"of {name}") == 1
        assert registered_model(asked) == (b"weights", b"{}", f"of {name}", 1)
    assert len(list((tmp_path / "served").rglob(WEIGHTS))) == 2
    assert not list(config.workspace.rglob(f"artifacts/**/{WEIGHTS}"))
