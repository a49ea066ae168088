"""One rank: reads the specification, trains, writes progress as JSON lines (`launch` starts it)."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from lam_spark.errors import without_values
from lam_spark.training.process_group import ProcessGroup, process_group_of
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import Trainer

PROGRESS_FILE = "progress.jsonl"
# With the number of the rank (of the process, before it had a rank): why it failed.
FAILURE_FILE = "failure."
DRIVER_VARIABLE = "LAM_SPARK_DRIVER"
_SECONDS_BETWEEN_LOOKS = 2.0
# At most, between the driver's start and a rank's.
_CLOCK_IS_SET_BY_SECONDS = 600.0


def driver_name() -> str:
    """This process, so that its ranks can tell when it is gone: `pid:start time`."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def leave_with_driver(name: str) -> None:
    """End this process when the driver that started it is gone (kill -9 gives nobody else the chance)."""
    pid, _, started = name.partition(":")

    def watch() -> None:
        try:
            driver = psutil.Process(int(pid))
            # When it started moves with the machine's clock; whether it is the same process, psutil tells without.
            alive = abs(driver.create_time() - float(started)) < _CLOCK_IS_SET_BY_SECONDS
            while alive:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                alive = driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            pass
        try:
            print(f"a rank leaves: its driver, process {pid}, is gone", file=sys.stderr, flush=True)
        finally:  # whoever read what ranks say may be gone as well
            os._exit(1)

    threading.Thread(target=watch, name="leave-with-driver", daemon=True).start()


def train(spec: TrainingSpec, world: ProcessGroup) -> str:
    """Train as one rank of `world`; returns the artifact's digest on rank 0."""
    torch.set_num_threads(spec.settings["threads_per_rank"])
    with (Path(spec.folder) / PROGRESS_FILE).open("a", encoding="utf-8") as file:

        def progress(record: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(record) + "\n")
                file.flush()
            except OSError:
                # A full disk, which a training outlives: what is not written yet goes with the next line.
                if record["event"] == "done":
                    raise

        return Trainer(spec, world, progress).fit()


def main(arguments: list[str]) -> None:
    """Entry point of a rank's process.

    Raises:
        Exception: whatever ended the training; its kind, or our own text, is left in `FAILURE_FILE`.
    """
    if DRIVER_VARIABLE in os.environ:
        leave_with_driver(os.environ[DRIVER_VARIABLE])
    spec = TrainingSpec.load(Path(arguments[0]))
    # The driver has not handed these over, but a task of Spark inherits what its executor was started with.
    for variable in [name for name in os.environ if spec.withholds(name)]:
        del os.environ[variable]
    who, number = "process", os.getpid()  # until it has joined the others
    try:
        world = process_group_of(spec.settings["launcher"])
        who, number = "rank", world.rank
        train(spec, world)
    except Exception as error:
        # The driver repeats this; the log beside it may quote a customer's row.
        failure = f"{who} {number}: {without_values(error)}"
        (Path(spec.folder) / f"{FAILURE_FILE}{number}").write_text(failure, encoding="utf-8")
        raise
    world.close()


if __name__ == "__main__":
    faulthandler.enable()  # a rank that a library aborts says where
    main(sys.argv[1:])
    # Nothing is left to do, and what Python takes apart at its end, gloo's and Arrow's threads may still ask for: an
    # abort then would make a failure of a training that is whole (https://github.com/pytorch/pytorch/pull/179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
