"""What the driver gives its ranks; the ranks here are scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lam_spark.training import launch
from lam_spark.training.spec import SPEC_FILE, TrainingSpec

from .learnable import specification

SECRETS = {"LAM_SPARK_SECRET": "the key", "CRM_PASSWORD": "a password", "MLFLOW_TRACKING_PASSWORD": "another"}

Prepare = Callable[..., TrainingSpec]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def prepare(launcher: str = "in_process") -> TrainingSpec:
        ranks = 1 if launcher == "in_process" else 2
        spec = specification(tmp_path, [], launcher=launcher, ranks=ranks)
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
    launch.launch(prepared(), lambda record: None, ("LAM_SPARK_SECRET", "CRM_PASSWORD"))
    given = json.loads((tmp_path / "given").read_text())
    assert given["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & given.keys()

    tasks: list[Mapping[str, str]] = []
    monkeypatch.setattr(
        launch, "run_on_spark", lambda work, ranks, environment, log: tasks.append(environment)
    )
    launch.launch(prepared("horovod_spark"), lambda record: None, ("LAM_SPARK_SECRET", "CRM_PASSWORD"))
    assert tasks[0]["PATH"] == os.environ["PATH"]
    assert not SECRETS.keys() & tasks[0].keys()
