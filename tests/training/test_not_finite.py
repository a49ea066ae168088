"""Losses and gradients that are not finite: the training stops and names the blocks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lam_spark.errors import ModelError
from lam_spark.model.artifact import WEIGHTS, Calibration
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.trainer import Trainer
from lam_spark.training.validate import require_finite_losses
from lam_spark.training.validation import ValidationMetrics
from lam_spark.training_data.packing import Block
from tests.support.learnable import SHAPE, TEST, VALIDATION, blocks, specification, take_steps
from tests.support.tiny import stack

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow


def with_infinite_amounts(content: list[Block], start: int, end: int) -> list[Block]:
    """Blocks whose amounts in [start, end) are infinite."""
    for block in content:
        rows = (block["window"] > 0) & (block["known_at"] >= start) & (block["known_at"] < end)
        block["event_amount"][rows] = np.inf
    return content


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path) -> None:
    """The only block with infinite numbers is in the batch that the error names."""
    content = blocks(20)
    with_infinite_amounts(content[13:14], 0, VALIDATION)
    spec = specification(tmp_path, [content[:10], content[10:]])
    trainer = Trainer(spec, LocalGroup(), lambda record: None)
    with pytest.raises(ModelError) as raised:
        trainer.fit()
    match = re.fullmatch(
        r"the loss is not finite in pre-training, epoch 1, step (\d+), rank 0 \(loss nan, gradient norm nan\), (.*) "
        r"\(counted from 0\)\. Lower training.learning_rate, or look for extreme numbers in the events of these blocks",
        str(raised.value),
    )
    assert match is not None, raised.value
    assert int(match[1]) == trainer.state.step + 1 > 1
    names = match[2].split(", ")
    assert len(names) == spec.settings.micro_batch_size
    assert f"{spec.all_urls[1]} row group 0 row 3" in names
    assert not (tmp_path / WEIGHTS).exists()


class TwoProcesses(LocalGroup):
    """Rank 0 of two. The other process has numbers that are not finite, or gradients too large for 16 bits."""

    size = 2

    def __init__(self, other: str) -> None:
        self.other = other

    def begin_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        gradients = values.dtype == torch.float16 or (values.dtype == torch.float32 and values.numel() > 1000)
        return lambda: values * (np.inf if gradients else 2)

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        assert not len(values)  # this process has no such block
        others = [[1, np.inf, np.nan, 1, 0, 2], [1, np.inf, np.nan, 1, 2, 0]]
        return np.array(others) if self.other == "not finite" else values


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "not finite",
            "the loss is not finite in fine-tuning, epoch 1, step 1, rank 1 (loss inf, gradient norm nan), {url} row "
            "group 0 row 2, {url} row group 2 row 0 (counted from 0). Lower training.learning_rate, or look for "
            "extreme numbers in the events of these blocks",
        ),
        (
            "too large",
            "the gradients are finite on each rank in fine-tuning, epoch 1, step 1, but their sum is not. Lower "
            "training.learning_rate",
        ),
    ],
)
def test_the_message_names_only_the_blocks_of_the_process_that_caused_it(
    tmp_path: Path, other: str, message: str
) -> None:
    content = blocks(8)
    spec = specification(tmp_path, [content[:4], content[4:]])
    trainer = Trainer(spec, TwoProcesses(other), lambda record: None)
    with pytest.raises(ModelError) as raised:
        take_steps(trainer, [stack(SHAPE, content[:2])])
    assert str(raised.value) == message.format(url=spec.all_urls[1])


def test_an_infinite_number_in_the_validation_period_stops_the_training(tmp_path: Path) -> None:
    """It reaches the training loss too: its block has examples of the training period."""
    content = with_infinite_amounts(blocks(8), VALIDATION, TEST)
    spec = specification(tmp_path, [content], pretrain_epochs=0, next_event_weight=0)
    with pytest.raises(ModelError, match=r"^the loss is not finite in fine-tuning, epoch 1, step 1, rank 0 "):
        Trainer(spec, LocalGroup(), lambda record: None).fit()
    assert not (tmp_path / WEIGHTS).exists()


def test_an_epoch_whose_validation_loss_is_not_finite_is_refused() -> None:
    """Without a finite validation loss no epoch can be selected, and no model may be saved."""
    finite = ValidationMetrics(0.5, 0.7, 0.7, {"AUC": 0.75}, Calibration(1.0, 0.0))
    require_finite_losses({"reply": finite}, 1, ["file:///a", "file:///b"])
    broken = dataclasses.replace(finite, loss=np.nan)
    with pytest.raises(ModelError) as raised:
        require_finite_losses({"reply": finite, "visit": broken}, 2, ["file:///a", "file:///b"])
    assert str(raised.value) == (
        "the validation loss of 'visit' is not finite after fine-tuning epoch 2: no epoch can be selected. Look for "
        "extreme numbers in the events of the validation period, files file:///a, file:///b"
    )
