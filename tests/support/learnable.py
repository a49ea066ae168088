"""Small synthetic data set with something to learn, as block files and a training specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lam_spark.config import TrainingConfig
from lam_spark.training.losses import Period
from lam_spark.training.phases import FINE_TUNING, Phase
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.packing import Block, Customer
from tests.support.tiny import DAY, SIZE, START, blocks_of, customer, layout, write_blocks

SHAPE = layout(block_events=24, queries_per_block=8)
VALIDATION = START + 100 * DAY
TEST = START + 150 * DAY
_QUERY_DAYS = (30, 50, 70, 90, 120, 140, 160)
_SPLITS = ("train",) * 4 + ("validation",) * 2 + ("test",)


def person(number: int) -> Customer:
    """A customer whose items follow each other in a circle; the label is 1 for queries with an item above 5."""
    days = np.arange(number % 4, 170, 8)
    person = customer(
        SHAPE,
        START + days * DAY,
        [START + day * DAY for day in _QUERY_DAYS],
        seed=number,
        split=_SPLITS,
        item=3 + (np.arange(len(days)) + number) % 6,
    )
    person.queries["label_reply"] = (person.queries["query_item"] > 5).astype(np.float32)
    return person


def blocks(people: int = 24) -> list[Block]:
    """Blocks of the customers; the last event of each window is in the test period."""
    return blocks_of(SHAPE, [person(number) for number in range(people)])


def specification(folder: Path, files: list[list[Block]], **settings: Any) -> TrainingSpec:
    """Write the files into `folder` and return the specification of a training on them."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = tuple(
        write_blocks(folder / f"part-{number}.parquet", SHAPE, part) for number, part in enumerate(files)
    )
    defaults = {
        "launcher": "in_process",
        "world_size": 1,
        "pretrain_epochs": 2,
        "finetune_epochs": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "finetune_learning_rate": 1e-2,
    }
    return TrainingSpec(
        layout=SHAPE,
        size=SIZE,
        settings=TrainingConfig(**{**defaults, **settings}),
        all_urls=urls,
        queried_urls=urls,
        validation_start=VALIDATION,
        test_start=TEST,
        numeric_mean=(0.0,),
        numeric_std=(1.0,),
        numeric_edges=((-1.0, 0.0, 1.0),),
        target="reply",
        target_weights=(1.0,),
        folder=str(folder),
        facts={"run_id": "a test"},
    )


def take_steps(trainer: Trainer, blocks_by_step: list[Block | None]) -> dict[str, torch.Tensor]:
    """Run the trainer's step over given blocks and return the weights.

    Plain gradient descent: Adam would turn the rounding error of a gradient near zero into a whole step.
    """
    trainer.model.train()
    optimiser = torch.optim.SGD(trainer.model.parameters(), lr=0.5, momentum=0.9)
    period = Period(0, VALIDATION, ("train",))
    phase = Phase(FINE_TUNING, trainer.queried_files, period, 1, 0.5, with_targets=True, next_weight=0.5)
    for block in blocks_by_step:
        trainer._step(optimiser, block, phase)
    return trainer.model.state_dict()
