"""One rank: reads the specification, trains, writes progress as JSON lines.

horovodrun --gloo -np 2 python -m lam_spark.training.worker /path/to/spec.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lam_spark.training.distributed import HorovodWorld, SingleWorld, World
from lam_spark.training.fit import Trainer, TrainingSpec

PROGRESS_FILE = "progress.jsonl"


def train(spec: TrainingSpec, world: World) -> str:
    """Train as one rank of `world`; returns the artifact's digest on rank 0."""
    torch.set_num_threads(spec.settings["threads_per_rank"])
    with (Path(spec.folder) / PROGRESS_FILE).open("a", encoding="utf-8") as file:

        def progress(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        return Trainer(spec, world, progress).fit()


def main(arguments: list[str]) -> None:
    """Entry point of a rank's process."""
    spec = TrainingSpec.load(Path(arguments[0]))
    world: World = HorovodWorld() if spec.settings["launcher"] == "horovod" else SingleWorld()
    train(spec, world)
    world.close()


if __name__ == "__main__":
    main(sys.argv[1:])
