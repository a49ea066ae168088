"""One rank of test_two_ranks.py.

horovodrun --gloo -np 2 -H localhost:2 python -m tests.unit.rank_worker SPEC FOLDER
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
from tests.support.learnable import SHAPE, take_steps, validation_of

STEPS = 4


def main(spec_file: str, folder: str) -> None:
    """Leaves `steps-RANK.safetensors`, `fit-RANK.safetensors` and `told-RANK.json` in the folder."""
    torch.set_num_threads(1)
    spec, out = TrainingSpec.load(Path(spec_file)), Path(folder)
    world = HorovodGroup()
    # Another seed a rank: only sharing the first rank's weights can make the ranks start alike.
    settings = {**spec.settings, "seed": spec.settings["seed"] + world.rank}
    trainer = Trainer(dataclasses.replace(spec, settings=settings), world, lambda record: None)
    batches = block_batches(trainer.queried_files, SHAPE, spec.settings["micro_batch_size"], seed=None)
    mine = [next(batches, None) for _ in range(STEPS)]
    save_file(take_steps(trainer, mine), out / f"steps-{world.rank}.safetensors")
    verdict = trainer._measure_targets(validation_of(spec))[spec.target]
    if world.rank == 1 and mine[0] is not None:
        mine[0]["event_amount"][0][:] = torch.inf
    try:
        take_steps(trainer, mine[:1])
    except ModelError as error:
        refusal = str(error)
    told: list[dict[str, object]] = []
    trainer = Trainer(spec, world, told.append)
    trainer.fit()
    save_file(trainer.model.state_dict(), out / f"fit-{world.rank}.safetensors")
    read = [block is not None for block in mine]
    summary = {
        "size": world.size,
        "read": read,
        "blocks": trainer.queried_files.blocks,
        "verdict": dataclasses.asdict(verdict),
        "told": told,
        "refusal": refusal,
    }
    (out / f"told-{world.rank}.json").write_text(json.dumps(summary))
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
