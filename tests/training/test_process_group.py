"""Two real Horovod ranks with files of different sizes: they agree, and with one process over everything.

horovodrun starts once; the tests look at what the ranks left (rank_worker.py).
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
from tests.support.learnable import SHAPE, blocks, specification, take_steps, validation_of
from tests.support.rank_worker import STEPS
from tests.support.tiny import SIZE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(sys.executable).with_name("horovodrun")
HANG_SECONDS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left: one has 8 blocks, the other 3 (batches of 2: four steps and two)."""
    folder = tmp_path_factory.mktemp("world_size")
    made = blocks(11)
    assert len(made) == 11
    spec = specification(
        folder, [made[:8], made[8:]], launcher="horovod", ranks=2, pretrain_epochs=1, finetune_epochs=1,
        max_grad_norm=0.5,
    )  # fmt: skip
    spec.save(folder / "spec.json")
    command = [str(LAUNCHER), "--gloo", "-np", "2", "-H", "localhost:2", sys.executable]
    command += ["-m", f"{__package__}.rank_worker", str(folder / "spec.json"), str(folder)]
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
        pytest.fail(f"the ranks hang:\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return folder


@pytest.fixture(scope="module")
def spec(folder: Path) -> TrainingSpec:
    return TrainingSpec.load(folder / "spec.json")


def told(folder: Path, rank: int) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / f"told-{rank}.json").read_text())
    return summary


def weights(folder: Path, what: str) -> list[dict[str, torch.Tensor]]:
    """Of both ranks."""
    return [load_file(folder / f"{what}-{rank}.safetensors") for rank in (0, 1)]


def test_one_rank_runs_out_of_batches_before_the_other(folder: Path) -> None:
    ranks = [told(folder, rank) for rank in (0, 1)]
    assert [rank["size"] for rank in ranks] == [2, 2]
    assert [rank["blocks"] for rank in ranks] == [8, 3]
    assert [rank["read"] for rank in ranks] == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("what", ["steps", "fit"])
def test_both_ranks_end_with_the_same_weights(folder: Path, what: str) -> None:
    first, second = weights(folder, what)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_two_ranks_do_what_one_process_does_with_their_batches_joined(
    folder: Path, spec: TrainingSpec
) -> None:
    alone = Trainer(spec, LocalGroup(), lambda record: None)
    started = {name: values.clone() for name, values in alone.model.state_dict().items()}
    hands = [
        list(block_batches(files_of_rank(spec.queried_urls, rank, 2), SHAPE, 2, seed=None)) for rank in (0, 1)
    ]
    joined: list[Block | None] = []
    for step in range(STEPS):
        parts = [hand[step] for hand in hands if step < len(hand)]
        joined.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    expected = take_steps(alone, joined)
    together, _ = weights(folder, "steps")
    for name, values in expected.items():
        torch.testing.assert_close(together[name], values, rtol=1e-5, atol=1e-5, msg=name)
    assert any(not torch.allclose(started[name], values, atol=1e-2) for name, values in expected.items())


def test_both_ranks_say_whose_loss_is_not_finite(folder: Path, spec: TrainingSpec) -> None:
    first, second = (told(folder, rank)["refusal"] for rank in (0, 1))
    assert first == second
    file = spec.queried_urls[1]
    assert first.startswith(
        "the loss is not finite in fine-tuning, epoch 1, step 1, rank 1 (loss nan, gradient norm nan), "
        f"{file} row group 0 row 0, {file} row group 0 row 1 (counted from 0)."
    )


def test_the_first_rank_alone_tells_and_saves(folder: Path) -> None:
    assert told(folder, 1)["told"] == []
    records = told(folder, 0)["told"]
    assert records[-1]["event"] == "done"
    facts = records[-1]["facts"]
    assert facts["world_size"] == 2
    slots = sum(int((block["window"] > 0).sum()) for block in blocks(11))
    assert facts["tokens"] == slots * 3  # pre-training, fine-tuning and refit, of both ranks' files
    once, with_targets = block_flops(SHAPE, SIZE, False), block_flops(SHAPE, SIZE)
    # Every block has late events and a late question: they judge before and after the one epoch.
    judged = 2 * (forward_flops(SHAPE, SIZE, False) + forward_flops(SHAPE, SIZE))
    assert facts["flops"] == 11 * (once + 2 * with_targets + judged)
    saved, (first, _) = load_file(folder / WEIGHTS), weights(folder, "fit")
    assert all(torch.equal(saved[name], first[name]) for name in first)


def test_the_ranks_judge_together_what_one_process_judges(folder: Path, spec: TrainingSpec) -> None:
    """Before any step the models are equal, so the losses over all ranks' files must be."""
    records: list[dict[str, Any]] = []
    alone = Trainer(spec, LocalGroup(), records.append)
    alone._validate_next(0, validation_of(spec))
    first = next(r for r in told(folder, 0)["told"] if r["event"] == "epoch" and r["epoch"] == 0)
    assert first["validation loss"] == pytest.approx(records[0]["validation loss"], rel=1e-5)


def test_the_ranks_reach_one_verdict_on_the_answers(folder: Path, spec: TrainingSpec) -> None:
    """To the last bit the same on both, or they might choose different epochs; and that of one process over all."""
    first, second = (told(folder, rank)["verdict"] for rank in (0, 1))
    assert first == second
    alone = Trainer(spec, LocalGroup(), lambda record: None)
    alone.model.load_state_dict(weights(folder, "steps")[0])
    expected = dataclasses.asdict(alone._measure_targets(validation_of(spec))["reply"])
    for name in ("loss", "naive_loss", "unit"):
        assert first[name] == pytest.approx(expected[name], rel=1e-5)
    assert first["measures"] == pytest.approx(expected["measures"])
    assert first["calibration"] == pytest.approx(expected["calibration"], rel=1e-3)
