"""What the driver gives its ranks, and what it says when they fail; the ranks here are scripts."""

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
Their log is {log}
What else they said may quote a customer's row: LAM_SPARK_SHOW_VALUES=1 shows its end"""

Prepare = Callable[..., TrainingSpec]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def prepare(launcher: str = "in_process") -> TrainingSpec:
        ranks = 1 if launcher == "in_process" else 2
        spec = specification(tmp_path, [], launcher=launcher, ranks=ranks)
        spec = dataclasses.replace(spec, secrets=("LAM_SPARK_SECRET", "CRM_PASSWORD"))
        spec.save(tmp_path / SPEC_FILE)
        return spec

    return prepare


def a_rank_that(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let every rank do this; `folder` is the training's."""
    start = "import json, os, sys; from pathlib import Path; folder = Path(sys.argv[1]).parent\n"
    monkeypatch.setattr(launch, "_WORKER", ("-c", start + script))


def test_ranks_are_not_given_secrets(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    a_rank_that(monkeypatch, "(folder / 'given').write_text(json.dumps(dict(os.environ)))")
    launch.launch(prepared(), lambda record: None)
    given = json.loads((tmp_path / "given").read_text())
    assert given["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & given.keys()

    tasks: list[Mapping[str, str]] = []
    monkeypatch.setattr(
        launch, "run_on_spark", lambda work, ranks, environment, log: tasks.append(environment)
    )
    launch.launch(prepared("horovod_spark"), lambda record: None)
    assert tasks[0]["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & tasks[0].keys()


def test_a_rank_forgets_the_secrets_of_its_executor(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of Spark has the environment that its executor was started with, whatever the driver hands over."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    given: list[dict[str, str]] = []
    monkeypatch.setattr(worker, "train", lambda spec, world: given.append(dict(os.environ)))
    prepared()
    worker.main([str(tmp_path / SPEC_FILE)])
    assert given[0]["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & given[0].keys()


def leave_failures(folder: Path) -> None:
    """As two ranks do."""
    for name, text in FAILURES.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("shown", [True, False])
def test_what_others_say_of_a_failure_is_shown_on_request_only(
    tmp_path: Path,
    prepared: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shown: bool,
) -> None:
    monkeypatch.setenv("LAM_SPARK_SHOW_VALUES", "1" if shown else "")
    files = "".join(f"(folder / {name!r}).write_text({text!r})\n" for name, text in FAILURES.items())
    a_rank_that(monkeypatch, f'{files}sys.exit("{ROW}")')
    causes = CAUSES.format(log=tmp_path / "worker.log")
    with pytest.raises(ModelError) as raised:
        launch.launch(prepared(), lambda record: None)
    assert str(raised.value) == f"training stopped with exit code 1{causes}"
    assert (ROW in capsys.readouterr().err) == shown

    def run(work: Callable[[], None], ranks: int, environment: Mapping[str, str], log: IO[str]) -> None:
        leave_failures(tmp_path)
        log.write("a rank's last words")
        raise RuntimeError(ROW)

    monkeypatch.setattr(launch, "run_on_spark", run)
    with pytest.raises(ModelError) as raised:
        launch.launch(prepared("horovod_spark"), lambda record: None)
    assert str(raised.value) == (
        f"training stopped: RuntimeError{causes}\nMore may stand in the executors' logs"
    )
    said = capsys.readouterr().err
    assert (ROW in said) == ("a rank's last words" in said) == shown


def test_failures_of_an_earlier_run_are_forgotten(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepared()
    leave_failures(tmp_path)
    a_rank_that(monkeypatch, "os._exit(9)")
    with pytest.raises(ModelError, match="exit code 9\nTheir log is"):
        launch.launch(spec, lambda record: None)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ModelError("a field\nhas no values"), "ModelError: a field\nhas no values"),
        (ValueError(ROW), "ValueError"),
    ],
)
def test_a_rank_leaves_why_it_failed(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch, error: Exception, left: str
) -> None:
    def fail(spec: TrainingSpec, world: object) -> str:
        raise error

    monkeypatch.setattr(worker, "train", fail)
    prepared()
    with pytest.raises(type(error)):
        worker.main([str(tmp_path / SPEC_FILE)])
    assert (tmp_path / "failure.0").read_text() == f"rank 0: {left}"
