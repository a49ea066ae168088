"""Environment of the training processes, and messages when they fail. The processes here are scripts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest

from lam_spark.errors import ModelError
from lam_spark.training.launch import launchers as launch
from lam_spark.training.launch import worker
from lam_spark.training.spec import SPEC_FILE, TrainingSpec
from tests.support.learnable import specification

SECRETS = {"LAM_SPARK_SECRET": "the key", "CRM_PASSWORD": "a password", "MLFLOW_TRACKING_PASSWORD": "another"}
ROW = "the value 'C-1234' cannot be cast"
FAILURES = {"failure.0": "rank 0: ModelError: a field has no values", "failure.1": "rank 1: ArrowInvalid"}
CAUSES = """
rank 0: ModelError: a field has no values
rank 1: ArrowInvalid
The log is {log}
The end of the log may quote a customer's row: LAM_SPARK_SHOW_VALUES=1 shows it"""

Prepare = Callable[..., TrainingSpec]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def prepare(launcher: str = "in_process") -> TrainingSpec:
        world_size = 1 if launcher == "in_process" else 2
        spec = specification(tmp_path, [], launcher=launcher, world_size=world_size)
        spec = dataclasses.replace(spec, secrets=("LAM_SPARK_SECRET", "CRM_PASSWORD"))
        spec.save(tmp_path / SPEC_FILE)
        return spec

    return prepare


def run_script(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make every training process run a script; its variable `folder` is the training folder."""
    start = "import json, os, sys; from pathlib import Path; folder = Path(sys.argv[1]).parent\n"
    monkeypatch.setattr(launch, "_WORKER", ("-c", start + script))


def test_training_processes_do_not_get_secrets(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run_script(monkeypatch, "(folder / 'environment').write_text(json.dumps(dict(os.environ)))")
    launch.launch(prepared(), lambda record: None)
    environment = json.loads((tmp_path / "environment").read_text())
    assert environment["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & environment.keys()

    tasks: list[Mapping[str, str]] = []
    monkeypatch.setattr(
        launch, "run_on_spark", lambda work, world_size, environment, log: tasks.append(environment)
    )
    launch.launch(prepared("horovod_spark"), lambda record: None)
    assert tasks[0]["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & tasks[0].keys()


def test_a_spark_task_drops_the_secrets_of_its_executor(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of Spark has the environment that its executor was started with, whatever the driver passes."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(worker, "train", lambda spec, group: environments.append(dict(os.environ)))
    prepared()
    worker.main([str(tmp_path / SPEC_FILE)])
    assert environments[0]["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & environments[0].keys()


def write_failures(folder: Path) -> None:
    """Write the failure files of two processes."""
    for name, text in FAILURES.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("shown", [True, False])
def test_the_text_of_other_libraries_is_shown_on_request_only(
    tmp_path: Path,
    prepared: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: bool,
) -> None:
    monkeypatch.setenv("LAM_SPARK_SHOW_VALUES", "1" if shown else "")
    files = "".join(f"(folder / {name!r}).write_text({text!r})\n" for name, text in FAILURES.items())
    run_script(monkeypatch, f'{files}sys.exit("{ROW}")')
    causes = CAUSES.format(log=tmp_path / "worker.log")
    with pytest.raises(ModelError) as raised:
        launch.launch(prepared(), lambda record: None)
    assert str(raised.value) == f"training stopped with exit code 1{causes}"
    assert (ROW in capsys.readouterr().err) == shown

    def run(work: Callable[[], None], world_size: int, environment: Mapping[str, str], log: IO[str]) -> None:
        write_failures(tmp_path)
        log.write("end of the log")
        raise RuntimeError(ROW)

    monkeypatch.setattr(launch, "run_on_spark", run)
    with pytest.raises(ModelError) as raised:
        launch.launch(prepared("horovod_spark"), lambda record: None)
    assert str(raised.value) == (f"training stopped: RuntimeError{causes}\nThe executors' logs may have more")
    stderr = capsys.readouterr().err
    assert (ROW in stderr) == ("end of the log" in stderr) == shown


def test_failure_files_of_an_earlier_run_are_deleted(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepared()
    write_failures(tmp_path)
    run_script(monkeypatch, "os._exit(9)")
    with pytest.raises(ModelError) as raised:
        launch.launch(spec, lambda record: None)
    _, _, _, *log = CAUSES.format(log=tmp_path / "worker.log").splitlines()
    assert str(raised.value) == "\n".join(["training stopped with exit code 9", *log])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModelError("a field\nhas no values"), "ModelError: a field\nhas no values"),
        (ValueError(ROW), "ValueError"),
    ],
)
def test_a_process_writes_the_cause_of_its_failure(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(spec: TrainingSpec, group: object) -> str:
        raise error

    monkeypatch.setattr(worker, "train", fail)
    prepared()
    with pytest.raises(type(error)):
        worker.main([str(tmp_path / SPEC_FILE)])
    assert (tmp_path / "failure.0").read_text() == f"rank 0: {text}"
