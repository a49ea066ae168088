"""Phases of a training: what one pass over the data reads, and which losses it minimises."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lam_spark.config import TrainingConfig
from lam_spark.errors import ModelError
from lam_spark.training.losses import Period
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.loader import BlockFiles, count_blocks
from lam_spark.training_data.packing import Block

PRE_TRAINING, FINE_TUNING, REFIT = "pre-training", "fine-tuning", "refit"
# Microseconds UTC, before any event, also before 1970.
_BEGINNING = -(2**62)


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes:
        name: name in progress records and checkpoints; it also seeds the steps.
        files: block files of this process.
        period: period that is trained on.
        epochs: number of epochs of the learning-rate schedule.
        learning_rate: highest learning rate, before scaling.
        with_targets: whether the targets' losses count.
        next_weight: weight of the loss of the next timestamp group.
        contrastive_weight: weight of the contrastive loss.
    """

    # Block columns that `has_targets` reads.
    COLUMNS = ("window", "is_new", "known_at", "query_split")

    name: str
    files: BlockFiles
    period: Period
    epochs: int
    learning_rate: float
    with_targets: bool
    next_weight: float
    contrastive_weight: float = 0.0

    def has_targets(self, block: Block) -> npt.NDArray[np.bool_]:
        """(blocks,) bool: whether a block has anything to train on; other blocks are skipped."""
        time, period = block["known_at"], self.period
        mask = np.zeros(len(time), np.bool_)
        if self.with_targets:
            mask |= np.isin(block["query_split"], [SPLIT_IDS[name] for name in period.splits]).any(axis=1)
        if self.next_weight > 0:
            new = (block["window"] > 0) & (block["is_new"] > 0)
            mask |= (new & (time >= period.start) & (time < period.end)).any(axis=1)
        return mask


def phases_of(
    spec: TrainingSpec, all_files: BlockFiles, queried_files: BlockFiles
) -> tuple[Phase, Phase, Phase]:
    """Pre-training, fine-tuning and refit of a training.

    Args:
        spec: the training.
        all_files: this process's part of `spec.all_urls`.
        queried_files: this process's part of `spec.queried_urls`.
    """
    settings = spec.settings
    training = Period(_BEGINNING, spec.validation_start, ("train",))
    before_test = Period(_BEGINNING, spec.test_start, ("train", "straddling", "validation"))
    pre_training = Phase(
        PRE_TRAINING,
        all_files,
        training,
        settings.pretrain_epochs,
        settings.learning_rate,
        with_targets=False,
        next_weight=1.0,
        contrastive_weight=settings.contrastive_weight,
    )
    fine_tuning = Phase(
        FINE_TUNING,
        queried_files,
        training,
        settings.finetune_epochs,
        settings.finetune_learning_rate,
        with_targets=True,
        next_weight=settings.next_event_weight,
    )
    return pre_training, fine_tuning, dataclasses.replace(fine_tuning, name=REFIT, period=before_test)


def validation_period(spec: TrainingSpec) -> Period:
    """Period whose metrics select the best epoch."""
    return Period(spec.validation_start, spec.test_start, ("validation",))


def blocks_per_step(settings: TrainingConfig) -> int:
    """Blocks of one process in a step."""
    return settings.micro_batch_size * settings.gradient_accumulation_steps


def steps_per_epoch(phase: Phase, spec: TrainingSpec, group: ProcessGroup) -> int:
    """Steps of an epoch, the same on all processes; collective.

    Raises:
        ModelError: no process has anything to train on.
    """
    blocks = count_blocks(phase.files, spec.layout, phase.has_targets, Phase.COLUMNS)
    steps = group.largest(math.ceil(blocks / blocks_per_step(spec.settings)))
    if not steps:
        end = dt.datetime.fromtimestamp(phase.period.end / 1e6, dt.UTC)
        raise ModelError(
            f"{phase.name}: expected next events or labelled queries of {', '.join(phase.period.splits)} before "
            f"{end:%Y-%m-%d %H:%M} (UTC), found none: move the dates of split"
        )
    return steps
