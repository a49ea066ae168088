"""Two real Horovod processes with files of different sizes, compared with each other and with one process.

horovodrun starts once; the tests read the results that the processes wrote (tests/support/rank_worker.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lam_spark.model.artifact import WEIGHTS
from lam_spark.training.cost import block_flops, forward_flops
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.loader import block_batches, files_of_rank
from lam_spark.training_data.packing import Block
from tests.support.learnable import SHAPE, blocks, specification, take_steps
from tests.support.rank_worker import STEPS
from tests.support.tiny import SIZE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(sys.executable).with_name("horovodrun")
HANG_SECONDS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes: one has 8 blocks, the other 3 (in batches of 2: four steps and two)."""
    folder = tmp_path_factory.mktemp("two_processes")
    content = blocks(11)
    assert len(content) == 11
    spec = specification(
        folder, [content[:8], content[8:]], launcher="horovod", world_size=2, pretrain_epochs=1,
        finetune_epochs=1, max_grad_norm=0.5,
    )  # fmt: skip
    spec.save(folder / "spec.json")
    command = [str(LAUNCHER), "--gloo", "-np", "2", "-H", "localhost:2", sys.executable]
    command += ["-m", "tests.support.rank_worker", str(folder / "spec.json"), str(folder)]
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOROVOD_CYCLE_TIME": "5"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the processes hang:\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return folder


@pytest.fixture(scope="module")
def spec(folder: Path) -> TrainingSpec:
    return TrainingSpec.load(folder / "spec.json")


def results(folder: Path, rank: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"results-{rank}.json").read_text())
    return values


def weights(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    """Weights of both processes."""
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)]


def test_one_process_runs_out_of_batches_before_the_other(folder: Path) -> None:
    both = [results(folder, rank) for rank in (0, 1)]
    assert [values["size"] for values in both] == [2, 2]
    assert [values["blocks"] for values in both] == [8, 3]
    assert [values["steps_with_blocks"] for values in both] == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("name", ["steps", "fit"])
def test_both_processes_end_with_the_same_weights(folder: Path, name: str) -> None:
    first, second = weights(folder, name)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_two_processes_do_what_one_process_does_with_their_batches_joined(
    folder: Path, spec: TrainingSpec
) -> None:
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    initial = {name: values.clone() for name, values in trainer.model.state_dict().items()}
    batches = [
        list(block_batches(files_of_rank(spec.queried_urls, rank, 2), SHAPE, 2, seed=None)) for rank in (0, 1)
    ]
    joined: list[Block | None] = []
    for step in range(STEPS):
        parts = [of_rank[step] for of_rank in batches if step < len(of_rank)]
        joined.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    expected = take_steps(trainer, joined)
    actual, _ = weights(folder, "steps")
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=1e-5, atol=1e-5, msg=name)
    assert any(not torch.allclose(initial[name], values, atol=1e-2) for name, values in expected.items())


def test_both_processes_name_the_rank_whose_loss_is_not_finite(folder: Path, spec: TrainingSpec) -> None:
    first, second = (results(folder, rank)["error"] for rank in (0, 1))
    assert first == second
    file = spec.queried_urls[1]
    assert first == (
        "the loss is not finite in fine-tuning, epoch 1, step 1, rank 1 (loss nan, gradient norm nan), "
        f"{file} row group 0 row 0, {file} row group 0 row 1 (counted from 0). Lower training.learning_rate, or look "
        "for extreme numbers in the events of these blocks"
    )


def test_only_the_first_process_reports_and_saves(folder: Path) -> None:
    assert results(folder, 1)["records"] == []
    records = results(folder, 0)["records"]
    assert records[-1]["event"] == "done"
    summary = records[-1]["summary"]
    assert summary["world_size"] == 2
    slots = sum(int((block["window"] > 0).sum()) for block in blocks(11))
    assert summary["tokens"] == slots * 3  # pre-training, fine-tuning and refit, files of both processes
    without_targets, with_targets = block_flops(SHAPE, SIZE, False), block_flops(SHAPE, SIZE)
    # Every block has events and queries of the validation period, which is read before and after the one epoch.
    validation = 2 * (forward_flops(SHAPE, SIZE, False) + forward_flops(SHAPE, SIZE))
    assert summary["flops"] == 11 * (without_targets + 2 * with_targets + validation)
    saved, (first, _) = load_file(folder / WEIGHTS), weights(folder, "fit")
    assert all(torch.equal(saved[name], first[name]) for name in first)


def test_two_processes_validate_what_one_process_validates(folder: Path, spec: TrainingSpec) -> None:
    """Before any step the models are equal, so the losses over all files must be equal."""
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    expected = trainer.validation.next_group_loss(trainer.state)
    first = next(r for r in results(folder, 0)["records"] if r["event"] == "epoch" and r["epoch"] == 0)
    assert first["validation loss"] == pytest.approx(expected, rel=1e-5)


def test_two_processes_get_the_same_target_metrics(folder: Path, spec: TrainingSpec) -> None:
    """Equal to the last bit, or they might select different epochs; close to those of one process."""
    first, second = (results(folder, rank)["metrics"] for rank in (0, 1))
    assert first == second
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    trainer.model.load_state_dict(weights(folder, "steps")[0])
    expected = dataclasses.asdict(trainer.validation.target_metrics(trainer.state)["reply"])
    for name in ("loss", "naive_loss", "unit"):
        assert first[name] == pytest.approx(expected[name], rel=1e-5)
    assert first["measures"] == pytest.approx(expected["measures"])
    assert first["calibration"] == pytest.approx(expected["calibration"], rel=1e-3)
