"""Starts the processes of a training with `training.launcher` and follows their progress.

| launcher | processes | for |
| --- | --- | --- |
| `in_process` | one child process of the driver | `world_size` 1 |
| `horovod` | started by horovodrun on the driver's machine | one machine with several cores or GPUs |
| `horovod_spark` | tasks of a job of this Spark session (`horovod.spark.run`) | a cluster |
| `torch` | started by torchrun on the driver's machine | one machine, without Horovod |
| `torch_spark` | tasks of a job of this Spark session (`TorchDistributor`) | a cluster, without Horovod |

All run `worker.main` with the same specification. Tasks of a Spark job need the training folder and the snapshot's
files under the same path on every node, and `world_size` free task slots at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pyspark.sql import SparkSession

from lam_spark.errors import ModelError, values_may_be_shown, without_values
from lam_spark.masking import masked
from lam_spark.storage.files import drop_torn_line
from lam_spark.training.launch.worker import DRIVER_VARIABLE, FAILURE_FILE, PROGRESS_FILE, driver_name, main
from lam_spark.training.process_group import COLLECTIVE_TIMEOUT, run_on_spark
from lam_spark.training.progress import Progress
from lam_spark.training.spec import LOG_FILE, SPEC_FILE, TrainingSpec

_HOROVOD_VARIABLES = {
    # A process that never joins ends the others with an exit code instead of a hang.
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(int(COLLECTIVE_TIMEOUT.total_seconds())),
    # By default Horovod's thread wakes every millisecond, which costs a tenth of the speed where processes use all
    # cores (benchmarks/RESULTS.md).
    "HOROVOD_CYCLE_TIME": "5",
}
_WORKER = ("-m", "lam_spark.training.launch.worker")
# Programs of launchers, installed next to the Python interpreter.
_PROGRAMS = {"horovod": "horovodrun", "torch": "torchrun"}
_POLL_SECONDS = 0.5
# Time that a launcher has to end its processes.
_END_SECONDS = 30
_LOG_TAIL_LINES = 30
_TORCHRUN_REPORT = "failed (exitcode: "
_SHOW_HINT = "The end of the log may quote a customer's row: LAM_SPARK_SHOW_VALUES=1 shows it"


def launch(spec: TrainingSpec, on_record: Progress) -> None:
    """Start the processes and wait until they end; a failed process ends all.

    Args:
        spec: saved as `SPEC_FILE` in its folder.
        on_record: called with each progress record, soon after it was written.

    Raises:
        ModelError: a process failed (with the cause and the path of the log), or the launcher is not installed.
    """
    folder = Path(spec.folder)
    for failure in folder.glob(f"{FAILURE_FILE}*"):
        failure.unlink()  # of an earlier run
    progress = folder / PROGRESS_FILE
    progress.touch()
    drop_torn_line(progress)
    environment = {name: value for name, value in os.environ.items() if not spec.withholds(name)}
    with progress.open(encoding="utf-8") as lines:
        lines.seek(0, os.SEEK_END)  # skips records of earlier runs

        def follow() -> None:
            for record in _new_records(lines):
                on_record(record)

        _LAUNCHERS[spec.settings.launcher](spec, environment, follow)


def require_launcher(launcher: str) -> None:
    """Check that a launcher is installed, before stages run for hours.

    Raises:
        ModelError: a program of `training.launcher` is not installed.
    """
    if launcher in _PROGRAMS:
        _program_path(_PROGRAMS[launcher])


def _in_process(spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]) -> None:
    _run_processes([sys.executable, *_WORKER], spec, environment, follow)


def _horovodrun(spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]) -> None:
    size = spec.settings.world_size
    command = [_program_path(_PROGRAMS["horovod"]), "--gloo", "-np", str(size), "-H", f"localhost:{size}"]
    _run_processes([*command, sys.executable, *_WORKER], spec, environment, follow)


def _torchrun(spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]) -> None:
    size = spec.settings.world_size
    command = [_program_path(_PROGRAMS["torch"]), "--standalone", f"--nproc-per-node={size}"]
    _run_processes([*command, *_WORKER], spec, environment, follow)


def _program_path(program: str) -> str:
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        raise ModelError(
            f"expected {program} at {path}, found no such file: install what `make setup` installs, or choose another "
            "training.launcher (torch, or in_process with training.world_size 1, works without Horovod)"
        )
    return str(path)


def _run_processes(
    command: list[str], spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]
) -> None:
    """Run the processes on this machine; they end when this process ends."""
    folder, threads = Path(spec.folder), str(spec.settings.threads_per_rank)
    environment = {
        **_HOROVOD_VARIABLES,
        **environment,
        DRIVER_VARIABLE: driver_name(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    with (folder / LOG_FILE).open("w") as log:
        process = subprocess.Popen(
            [*command, str(folder / SPEC_FILE)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                follow()
                time.sleep(_POLL_SECONDS)
            follow()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()  # workers end with this process at the latest
                    process.wait()
    if process.returncode != 0:
        _show(_log_tail(spec))
        raise ModelError(f"training stopped with exit code {process.returncode}{_causes(spec)}")


def _causes(spec: TrainingSpec) -> str:
    """Lines for an error message: the causes that the processes wrote, and where the log is."""
    folder = Path(spec.folder)
    lines = [file.read_text(encoding="utf-8") for file in sorted(folder.glob(f"{FAILURE_FILE}*"))]
    if (folder / LOG_FILE).exists():
        lines.append(f"The log is {folder / LOG_FILE}")
    return "".join(f"\n{line}" for line in [*lines, _SHOW_HINT])


def _show(text: str) -> None:
    """Print to stderr if values may be shown: texts of other libraries may quote a customer's row."""
    if values_may_be_shown():
        print(masked(text), file=sys.stderr, flush=True)


def _log_tail(spec: TrainingSpec) -> str:
    """Last lines of the log, without the report that torchrun adds; empty without a log."""
    log = Path(spec.folder) / LOG_FILE
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    report = next((number for number, line in enumerate(lines) if _TORCHRUN_REPORT in line), len(lines))
    return "\n".join(lines[: report + 1][-_LOG_TAIL_LINES:])


def _horovod_spark(spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]) -> None:
    def run(path: str) -> None:
        variables = {**_HOROVOD_VARIABLES, **environment}
        with (Path(spec.folder) / LOG_FILE).open("w") as log:
            run_on_spark(lambda: main([path]), spec.settings.world_size, variables, log)

    _run_tasks(run, spec, follow)


def _torch_spark(spec: TrainingSpec, environment: Mapping[str, str], follow: Callable[[], None]) -> None:
    from pyspark.ml.torch.distributor import TorchDistributor

    def run(path: str) -> None:
        # TorchDistributor passes no environment: tasks have that of their executors. With
        # `spark.task.resource.gpu.amount`, Spark gives each task its own GPU.
        gpus = SparkSession.active().conf.get("spark.task.resource.gpu.amount", "") != ""
        TorchDistributor(spec.settings.world_size, local_mode=False, use_gpu=gpus).run(main, [path])

    _run_tasks(run, spec, follow)


def _run_tasks(run: Callable[[str], None], spec: TrainingSpec, follow: Callable[[], None]) -> None:
    """Run the processes as tasks of a Spark job, which ends with the session.

    The job runs in this thread, whose call to the JVM a signal ends; another thread follows the progress.
    """
    finished, failures = threading.Event(), []

    def watch() -> None:
        try:
            while not finished.wait(_POLL_SECONDS):
                follow()
        except Exception as error:  # raised below
            failures.append(error)

    watcher = threading.Thread(target=watch, name="follow-training", daemon=True)
    watcher.start()
    try:
        run(str(Path(spec.folder) / SPEC_FILE))
    except Exception as error:  # a launcher raises whatever its job raised
        _show(f"{error}\n{_log_tail(spec)}")
        raise ModelError(
            f"training stopped: {without_values(error)}{_causes(spec)}\nThe executors' logs may have more"
        ) from error
    finally:
        finished.set()
        watcher.join()
        follow()
    if failures:
        raise failures[0]


def _new_records(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """Complete lines that were written since the last call."""
    while True:
        position = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(position)
            return
        yield json.loads(line)


_LAUNCHERS: dict[str, Callable[[TrainingSpec, Mapping[str, str], Callable[[], None]], None]] = {
    "in_process": _in_process,
    "horovod": _horovodrun,
    "horovod_spark": _horovod_spark,
    "torch": _torchrun,
    "torch_spark": _torch_spark,
}
