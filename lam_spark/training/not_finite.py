"""Diagnosis of a step whose loss or gradient is not finite: which processes and blocks caused it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from lam_spark.training.phases import Phase
from lam_spark.training.process_group import ProcessGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training_data.loader import locate_blocks
from lam_spark.training_data.packing import Block


def not_finite_message(
    spec: TrainingSpec,
    group: ProcessGroup,
    phase: Phase,
    state: TrainingState,
    block: Block | None,
    loss: float,
    gradients: list[torch.Tensor],
    collective: bool,
) -> str:
    """Error message that names the processes whose own loss or gradient is not finite, and their blocks.

    Args:
        spec: the training.
        group: the process group.
        phase: current phase.
        state: training state, before the step.
        block: the step's blocks of this process.
        loss: this process's share of the loss.
        gradients: this process's gradients, before the sum over processes.
        collective: whether all processes call this; all then return the same message.
    """
    rows = np.zeros((0, 6))
    norm = float(get_total_norm(gradients))
    if block is not None and not (math.isfinite(loss) and math.isfinite(norm)):
        places = locate_blocks(phase.files, spec.layout, block)
        rows = np.array(
            [[group.rank, loss, norm, spec.all_urls.index(p.url), p.group, p.row] for p in places]
        )
    if collective:
        rows = group.gather(rows)
    step = f"{phase.name}, epoch {state.epoch}, step {state.step + 1}"
    if not len(rows):
        return f"the gradients are finite on each rank in {step}, but their sum is not. Lower training.learning_rate"
    lines = []
    for rank in np.unique(rows[:, 0]):
        of_rank = rows[rows[:, 0] == rank]
        loss, norm = of_rank[0, 1:3].tolist()
        blocks = [
            f"{spec.all_urls[file]} row group {row_group} row {row}"
            for file, row_group, row in of_rank[:, 3:].astype(int)
        ]
        lines.append(f"rank {rank:.0f} (loss {loss}, gradient norm {norm}), {', '.join(blocks)}")
    return (
        f"the loss is not finite in {step}, {'; '.join(lines)} (counted from 0). "
        "Lower training.learning_rate, or look for extreme numbers in the events of these blocks"
    )
