"""All launchers: two processes, started in any way, train the same model, or the error gives the cause."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lam_spark.errors import ModelError
from lam_spark.model.artifact import WEIGHTS, open_artifact, read_artifact
from lam_spark.training.launch.launchers import launch
from lam_spark.training.launch.worker import PROGRESS_FILE
from lam_spark.training.spec import SPEC_FILE, TrainingSpec
from lam_spark.training.trainer import CHECKPOINTS
from tests.support.learnable import blocks, specification

LAUNCHERS = ("horovod", "horovod_spark", "torch", "torch_spark")
# A killed process ends the job and the other processes within this time.
NOTICED_SECONDS = 120

pytestmark = [pytest.mark.usefixtures("spark"), pytest.mark.long]


def prepared(folder: Path, launcher: str, **settings: Any) -> TrainingSpec:
    """A training whose processes have files of different sizes."""
    content = blocks(10)
    defaults = {"pretrain_epochs": 10, "finetune_epochs": 1, "world_size": 2}
    spec = specification(folder, [content[:7], content[7:]], launcher=launcher, **{**defaults, **settings})
    spec.save(folder / SPEC_FILE)
    return spec


def train(spec: TrainingSpec) -> list[dict[str, Any]]:
    """Train and return the progress records."""
    records: list[dict[str, Any]] = []
    launch(spec, records.append)
    return records


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of a training with two processes."""
    folder = tmp_path_factory.mktemp("expected")
    train(prepared(folder, "horovod"))
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_all_launchers_give_the_same_weights(tmp_path: Path, launcher: str, expected: bytes) -> None:
    records = train(prepared(tmp_path, launcher))
    assert records[-1]["event"] == "done"
    assert records == [json.loads(line) for line in (tmp_path / PROGRESS_FILE).read_text().splitlines()]
    artifact = open_artifact(*read_artifact(tmp_path), records[-1]["digest"])
    assert artifact.facts["training"]["world_size"] == 2
    assert (tmp_path / WEIGHTS).read_bytes() == expected


def test_a_single_process_trains_too(tmp_path: Path) -> None:
    records = train(prepared(tmp_path, "in_process", world_size=1, pretrain_epochs=1))
    assert open_artifact(*read_artifact(tmp_path), records[-1]["digest"]).facts["training"]["world_size"] == 1


@pytest.mark.parametrize("launcher", ["in_process", *LAUNCHERS])
def test_failed_processes_end_the_training_with_the_cause(tmp_path: Path, launcher: str) -> None:
    spec = prepared(tmp_path, launcher, world_size=1 if launcher == "in_process" else 2)
    for url in spec.all_urls:
        Path(url.removeprefix("file://")).write_bytes(b"not a Parquet file")
    with pytest.raises(ModelError, match=r"training stopped(.|\n)*\nrank [01]: ArrowInvalid\n") as raised:
        train(spec)
    assert "magic bytes" not in str(raised.value)  # texts of other libraries may quote a customer's row
    assert not (tmp_path / WEIGHTS).exists()


def rank_processes(folder: Path) -> dict[int, psutil.Process]:
    """Rank -> process: each process has the progress file open for appending."""
    processes = {}
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).parent == folder and file.mode == "a" for file in process.open_files()):
                variables = process.environ()
                processes[int(variables.get("HOROVOD_RANK") or variables["RANK"])] = process
        except psutil.Error:
            continue
    return processes


@pytest.mark.parametrize(
    ("launcher", "rank"), [*((launcher, 1) for launcher in LAUNCHERS), ("horovod", 0), ("torch_spark", 0)]
)
def test_a_killed_process_ends_the_training_and_the_next_run_resumes(
    tmp_path: Path, launcher: str, rank: int, expected: bytes
) -> None:
    spec = prepared(tmp_path, launcher, checkpoint_minutes=0)
    processes: dict[int, psutil.Process] = {}
    killed_at: list[float] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 600
        while not list(tmp_path.glob(f"{CHECKPOINTS}/checkpoint-0000001*")):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        processes.update(rank_processes(tmp_path))
        processes[rank].kill()
        killed_at.append(time.monotonic())

    thread = threading.Thread(target=kill_one)
    thread.start()
    records: list[dict[str, Any]] = []
    with pytest.raises(ModelError, match="training stopped") as raised:
        launch(spec, records.append)
    ended = time.monotonic()
    thread.join()
    assert sorted(processes) == [0, 1], raised.value
    assert ended - killed_at[0] < NOTICED_SECONDS
    # A process that goes on would write the same files as the next run.
    _, alive = psutil.wait_procs(list(processes.values()), timeout=killed_at[0] + NOTICED_SECONDS - ended)
    assert not alive
    assert not (tmp_path / WEIGHTS).exists()
    launch(spec, records.append)
    assert "resumed" in [record["event"] for record in records]
    assert (tmp_path / WEIGHTS).read_bytes() == expected
