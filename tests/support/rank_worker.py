"""One process of tests/training/test_process_group.py.

horovodrun --gloo -np 2 -H localhost:2 python -m tests.support.rank_worker SPEC FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lam_spark.errors import ModelError
from lam_spark.training.process_group import HorovodGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.loader import block_batches
from tests.support.learnable import SHAPE, take_steps

STEPS = 4


def main(spec_file: str, folder: str) -> None:
    """Write `steps-RANK.safetensors`, `fit-RANK.safetensors` and `results-RANK.json` into the folder."""
    torch.set_num_threads(1)
    spec, out = TrainingSpec.load(Path(spec_file)), Path(folder)
    group = HorovodGroup()
    # Another seed on each rank: only sharing the first rank's weights can make them start alike.
    settings = spec.settings.model_copy(update={"seed": spec.settings.seed + group.rank})
    trainer = Trainer(dataclasses.replace(spec, settings=settings), group, lambda record: None)
    batches = block_batches(trainer.queried_files, SHAPE, spec.settings.micro_batch_size, seed=None)
    steps = [next(batches, None) for _ in range(STEPS)]
    save_file(take_steps(trainer, steps), out / f"steps-{group.rank}.safetensors")
    metrics = trainer.validation.target_metrics(trainer.state)[spec.target]
    if group.rank == 1 and steps[0] is not None:
        steps[0]["event_amount"][0][:] = torch.inf
    try:
        take_steps(trainer, steps[:1])
    except ModelError as caught:
        error = str(caught)
    records: list[dict[str, object]] = []
    trainer = Trainer(spec, group, records.append)
    trainer.fit()
    save_file(trainer.model.state_dict(), out / f"fit-{group.rank}.safetensors")
    results = {
        "size": group.size,
        "steps_with_blocks": [block is not None for block in steps],
        "blocks": trainer.queried_files.blocks,
        "metrics": dataclasses.asdict(metrics),
        "records": records,
        "error": error,
    }
    (out / f"results-{group.rank}.json").write_text(json.dumps(results))
    group.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
