"""One contract for all launchers: two ranks, started in five ways, train the same model or say what went wrong."""

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
# A killed rank ends the job, and the ranks that live on, after this at most.
NOTICED_SECONDS = 120

pytestmark = [pytest.mark.usefixtures("spark"), pytest.mark.long]


def prepared(folder: Path, launcher: str, **settings: Any) -> TrainingSpec:
    """A training whose ranks have files of different sizes."""
    made = blocks(10)
    chosen = {"pretrain_epochs": 10, "finetune_epochs": 1, "world_size": 2, **settings}
    spec = specification(folder, [made[:7], made[7:]], launcher=launcher, **chosen)
    spec.save(folder / SPEC_FILE)
    return spec


def trained(spec: TrainingSpec) -> list[dict[str, Any]]:
    """What the ranks told."""
    told: list[dict[str, Any]] = []
    launch(spec, told.append)
    return told


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that two ranks come to."""
    folder = tmp_path_factory.mktemp("expected")
    trained(prepared(folder, "horovod"))
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_two_ranks_come_to_the_same_weights_however_they_are_started(
    tmp_path: Path, launcher: str, expected: bytes
) -> None:
    told = trained(prepared(tmp_path, launcher))
    assert told[-1]["event"] == "done"
    assert told == [json.loads(line) for line in (tmp_path / PROGRESS_FILE).read_text().splitlines()]
    artifact = open_artifact(*read_artifact(tmp_path), told[-1]["digest"])
    assert artifact.facts["world_size"] == 2
    assert (tmp_path / WEIGHTS).read_bytes() == expected


def test_one_process_alone_trains_too(tmp_path: Path) -> None:
    told = trained(prepared(tmp_path, "in_process", ranks=1, pretrain_epochs=1))
    assert open_artifact(*read_artifact(tmp_path), told[-1]["digest"]).facts["world_size"] == 1


@pytest.mark.parametrize("launcher", ["in_process", *LAUNCHERS])
def test_ranks_that_fail_end_the_training_and_say_why(tmp_path: Path, launcher: str) -> None:
    spec = prepared(tmp_path, launcher, ranks=1 if launcher == "in_process" else 2)
    for url in spec.all_urls:
        Path(url.removeprefix("file://")).write_bytes(b"no Parquet")
    with pytest.raises(ModelError, match=r"training stopped(.|\n)*\nrank [01]: ArrowInvalid\n") as raised:
        trained(spec)
    assert "magic bytes" not in str(raised.value)  # somebody else's text may quote a customer's row
    assert not (tmp_path / WEIGHTS).exists()


def rank_processes(folder: Path) -> dict[int, psutil.Process]:
    """Rank -> its process: each has the training's progress open for writing, whoever started it."""
    found = {}
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).parent == folder and file.mode == "a" for file in process.open_files()):
                variables = process.environ()
                found[int(variables.get("HOROVOD_RANK") or variables["RANK"])] = process
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("launcher", "rank"), [*((launcher, 1) for launcher in LAUNCHERS), ("horovod", 0), ("torch_spark", 0)]
)
def test_one_rank_that_is_killed_ends_the_training_and_the_next_goes_on(
    tmp_path: Path, launcher: str, rank: int, expected: bytes
) -> None:
    spec = prepared(tmp_path, launcher, checkpoint_minutes=0)
    ranks: dict[int, psutil.Process] = {}
    killed: list[float] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f"{CHECKPOINTS}/checkpoint-0000001*")):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        ranks.update(rank_processes(tmp_path))
        ranks[rank].kill()
        killed.append(time.monotonic())

    thread = threading.Thread(target=kill_one)
    thread.start()
    told: list[dict[str, Any]] = []
    with pytest.raises(ModelError, match="training stopped") as raised:
        launch(spec, told.append)
    ended = time.monotonic()
    thread.join()
    assert sorted(ranks) == [0, 1], raised.value
    assert ended - killed[0] < NOTICED_SECONDS
    # The others were left alone; one that goes on would write beside the next training's ranks.
    _, alive = psutil.wait_procs(list(ranks.values()), timeout=killed[0] + NOTICED_SECONDS - ended)
    assert not alive
    assert not (tmp_path / WEIGHTS).exists()
    launch(spec, told.append)
    assert "resumed" in [record["event"] for record in told]
    assert (tmp_path / WEIGHTS).read_bytes() == expected
