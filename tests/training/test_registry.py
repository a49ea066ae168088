"""Model registry: a model is registered once and fetched by its alias; failures leave it in the training folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lam_spark.config import Config
from lam_spark.errors import ModelError
from lam_spark.model.artifact import CARD, WEIGHTS
from lam_spark.training import registry
from lam_spark.training.registry import register_model, registered_model, set_alias
from lam_spark.training.spec import LOG_FILE, SPEC_FILE, TrainingSpec
from lam_spark.training.tracking import Tracking
from tests.support.mlflow_runs import (
    UNREACHABLE,
    RefusingClient,
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

__all__ = ["config", "database", "folder", "spec"]


def register(tracking: Tracking, folder: Path, digest: str) -> int:
    """Register the model and move the alias, as the stage does."""
    version = register_model(tracking, folder, digest)
    set_alias(tracking, version)
    return version


def not_registered(failure: str, folder: Path) -> str:
    """Message of `register_model`."""
    return (
        f"{failure}, so the model is not registered: it is trained and stays in {folder}. Run the stage 'train' again "
        "when MLflow accepts requests; it then only registers the model"
    )


def test_a_model_is_registered_when_mlflow_can_be_reached_again(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, UNREACHABLE, monkeypatch) as tracking:
        tracking.start(spec, {"training_blocks": 3})
        for number in (1, 2):
            tracking.log(epoch(number))
        with pytest.raises(ModelError) as raised:
            register_model(tracking, folder, "digest")
    assert str(raised.value) == not_registered("MLflow cannot be reached (INTERNAL_ERROR)", folder)
    assert log_events(config) == ["mlflow cannot be reached"]
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {"training_blocks": 3})
        version = register(tracking, folder, "digest")
    client, run = only_run(config)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.seed"] == str(spec.settings.seed)
    assert run.data.tags["delta.training_blocks"] == "3"
    assert losses(client, run) == {1: 1.0, 2: 0.5}
    assert version == 1
    assert registered_model(config) == (b"weights", b"{}", "digest", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow_run", CARD, WEIGHTS]


def test_an_expired_token_does_not_end_the_training(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(1))
        monkeypatch.setattr(tracking, "client", RefusingClient())
        tracking.log(epoch(2))
        tracking.log(epoch(3))
        with pytest.raises(ModelError) as raised:
            register_model(tracking, folder, "digest")
    assert str(raised.value) == not_registered("MLflow refuses (PERMISSION_DENIED)", folder)
    assert log_events(config) == ["mlflow refuses"]
    assert "password" not in log_text(config)
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        register_model(tracking, folder, "digest")
    assert losses(*only_run(config)) == {1: 1.0, 2: 0.5, 3: 1 / 3}


def test_a_registry_that_refuses_leaves_the_model_in_the_folder(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        monkeypatch.setattr(tracking.client, "create_model_version", RefusingClient().create_model_version)
        with pytest.raises(ModelError) as raised:
            register_model(tracking, folder, "digest")
    assert str(raised.value) == not_registered("MLflow refuses (PERMISSION_DENIED)", folder)


def test_an_alias_that_cannot_be_set_is_set_by_the_next_run(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        version = register_model(tracking, folder, "digest")
        refuse = RefusingClient().set_registered_model_alias
        monkeypatch.setattr(tracking.client, "set_registered_model_alias", refuse)
        with pytest.raises(ModelError) as raised:
            set_alias(tracking, version)
    assert str(raised.value) == (
        "MLflow refuses (PERMISSION_DENIED), so version 1 of 'complete_journey' does not have the alias 'champion': "
        f"the model stays in {folder}. Run the stage 'train' again when MLflow accepts requests; it then only sets "
        "the alias"
    )
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        assert register(tracking, folder, "digest") == 1
    assert registered_model(config)[2:] == ("digest", 1)


def test_an_artifact_store_that_refuses_leaves_the_model_in_the_folder(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of stores raise exceptions of their own, which may quote an address with a password."""
    store = config.workspace / "mlflow" / "artifacts"
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        tracking.start(spec, {})
        store.write_text("a file instead of a folder")
        with pytest.raises(ModelError) as raised:
            register_model(tracking, folder, "digest")
        expected = re.escape(not_registered("MLflow's artifact store refuses: ERROR", folder))
        assert re.fullmatch(expected.replace("ERROR", r"\w+Error"), str(raised.value))
        store.unlink()
        assert register_model(tracking, folder, "digest") == 1


def test_a_model_that_cannot_be_fetched_gives_the_reason(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "expected a registered model 'complete_journey' with the alias 'champion'"
    none = f"{expected}, found none: run the stage 'train'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    with pytest.raises(ModelError) as raised:
        registered_model(config)
    failure = "MLflow cannot be reached (INTERNAL_ERROR)"
    assert str(raised.value) == f"{expected}, but {failure}: run this again when it accepts requests"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ModelError) as raised:
        registered_model(config)
    assert str(raised.value) == none
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        register(tracking, folder, "digest")
    client, _ = only_run(config)
    client.delete_registered_model_alias("complete_journey", "champion")
    with pytest.raises(ModelError) as raised:
        registered_model(config)
    assert str(raised.value) == none
    monkeypatch.setattr(registry, "create_client", lambda config: RefusingClient())
    with pytest.raises(ModelError) as raised:
        registered_model(config)
    failure = "MLflow refuses (PERMISSION_DENIED)"
    assert str(raised.value) == f"{expected}, but {failure}: run this again when it accepts requests"


def test_a_database_that_cannot_be_opened_counts_as_unreachable(
    config: Config, folder: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database is opened when the client is created, a server is contacted by the first request."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    uri = f"sqlite:///{config.workspace}"  # a folder
    failure = "MLflow cannot be reached (TEMPORARILY_UNAVAILABLE)"
    with tracking_of(config, folder, uri, monkeypatch) as tracking:
        tracking.start(spec, {})
        tracking.log(epoch(1))
        with pytest.raises(ModelError) as raised:
            register_model(tracking, folder, "digest")
    assert str(raised.value) == not_registered(failure, folder)
    assert log_events(config) == ["mlflow cannot be reached"]
    with pytest.raises(ModelError) as raised:
        registered_model(config)
    assert f"but {failure}: run this again" in str(raised.value)
    with tracking_of(config, folder, None, monkeypatch):
        pass
    assert losses(*only_run(config)) == {1: 1.0}


def test_fetching_a_model_leaves_no_temporary_files(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifacts are downloaded as from a server; a night fetches the model several times."""
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        register(tracking, folder, "digest")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    downloads = []
    download = MlflowClient.download_artifacts

    def recording_download(self: MlflowClient, run_id: str, path: str, dst_path: str | None = None) -> str:
        local = download(self, run_id, path, dst_path)
        downloads.append(Path(local).is_relative_to(temporary))
        return local

    monkeypatch.setattr(MlflowClient, "download_artifacts", recording_download)
    assert registered_model(config)[:2] == (b"weights", b"{}")
    assert downloads == [True]
    assert not list(temporary.iterdir())


def test_a_model_is_registered_once(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder still exists if the run was killed before it removed it."""
    for digest, version in (("digest", 1), ("digest", 1), ("another", 2)):
        with tracking_of(config, folder, None, monkeypatch) as tracking:
            assert register(tracking, folder, digest) == version
            assert registered_model(config)[2:] == (digest, version)


def test_the_workers_log_is_not_uploaded(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / SPEC_FILE).write_text("{}")
    (folder / LOG_FILE).write_text("a customer's row")
    with tracking_of(config, folder, None, monkeypatch) as tracking:
        register_model(tracking, folder, "digest")
    client, run = only_run(config)
    uploaded = [
        file.path for path in ("model", "training") for file in client.list_artifacts(run.info.run_id, path)
    ]
    assert uploaded == [f"model/{CARD}", f"model/{WEIGHTS}", f"training/{SPEC_FILE}"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of an MLflow server that keeps its files in `served`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served, log = tmp_path / "served", tmp_path / "server.log"
    served.mkdir()
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{served / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(served)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=served, start_new_session=True)
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
    """Two data sets share the server: no model is stored in a workspace."""
    for name in ("first", "second"):
        named = config.model_copy(update={"name": name})
        (folder / "mlflow_run").unlink(missing_ok=True)
        with tracking_of(named, folder, server, monkeypatch) as tracking:
            tracking.start(spec, {"training_blocks": 3})
            assert register(tracking, folder, f"of {name}") == 1
        assert registered_model(named) == (b"weights", b"{}", f"of {name}", 1)
    assert len(list((tmp_path / "served").rglob(WEIGHTS))) == 2
    assert not list(config.workspace.rglob(f"artifacts/**/{WEIGHTS}"))
