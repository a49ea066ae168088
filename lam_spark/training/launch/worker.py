"""Process of a training: reads the specification, trains, and writes progress records as JSON lines.

`launchers.launch` starts it.
"""

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
# Prefix of the files with the cause of a failure, followed by the rank, or the process id before it is known.
FAILURE_FILE = "failure."
DRIVER_VARIABLE = "LAM_SPARK_DRIVER"
_POLL_SECONDS = 2.0
# Largest change of the machine's clock between the start of the driver and of a worker.
_CLOCK_TOLERANCE_SECONDS = 600.0


def driver_name() -> str:
    """Name of this process for `exit_with_driver`: `pid:start time`."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


def exit_with_driver(name: str) -> None:
    """End this process when its driver ends, also after `kill -9` of the driver.

    Args:
        name: the driver's `driver_name`.
    """
    pid, _, started = name.partition(":")

    def watch() -> None:
        try:
            driver = psutil.Process(int(pid))
            # The start time moves with the machine's clock; afterwards psutil identifies the process without it.
            alive = abs(driver.create_time() - float(started)) < _CLOCK_TOLERANCE_SECONDS
            while alive:
                time.sleep(_POLL_SECONDS)
                alive = driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            pass
        try:
            print(f"training process ends: its driver, process {pid}, is gone", file=sys.stderr, flush=True)
        finally:  # the reader of stderr may be gone too
            os._exit(1)

    threading.Thread(target=watch, name="exit-with-driver", daemon=True).start()


def train(spec: TrainingSpec, group: ProcessGroup) -> str:
    """Train as one process of the group; returns the artifact's digest on rank 0."""
    torch.set_num_threads(spec.settings.threads_per_rank)
    with (Path(spec.folder) / PROGRESS_FILE).open("a", encoding="utf-8") as file:

        def progress(record: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(record) + "\n")
                file.flush()
            except OSError:
                # On a full disk training goes on: the buffer is written with the next record.
                if record["event"] == "done":
                    raise

        return Trainer(spec, group, progress).fit()


def main(arguments: list[str]) -> None:
    """Entry point of a training process.

    Args:
        arguments: the path of the specification.

    Raises:
        Exception: the cause of a failed training; its type, or our own message, is written to `FAILURE_FILE`.
    """
    if DRIVER_VARIABLE in os.environ:
        exit_with_driver(os.environ[DRIVER_VARIABLE])
    spec = TrainingSpec.load(Path(arguments[0]))
    # A Spark task inherits the environment of its executor, whatever the driver passes.
    for variable in [name for name in os.environ if spec.withholds(name)]:
        del os.environ[variable]
    kind, number = "process", os.getpid()  # until it has joined the group
    try:
        group = process_group_of(spec.settings.launcher)
        kind, number = "rank", group.rank
        train(spec, group)
    except Exception as error:
        # The driver shows this text; the log may quote a customer's row.
        failure = f"{kind} {number}: {without_values(error)}"
        (Path(spec.folder) / f"{FAILURE_FILE}{number}").write_text(failure, encoding="utf-8")
        raise
    group.close()


if __name__ == "__main__":
    faulthandler.enable()  # shows where a library aborts
    main(sys.argv[1:])
    # Skips Python's shutdown, in which threads of gloo and Arrow may abort a finished training
    # (https://github.com/pytorch/pytorch/pull/179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
