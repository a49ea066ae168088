"""Starts the ranks of a training, as `training.launcher` says, and follows what they tell.

| launcher | ranks are | for |
| --- | --- | --- |
| `in_process` | one process beside the driver | one rank |
| `horovod` | started by horovodrun on the driver's machine | one machine of several cores or GPUs |
| `horovod_spark` | tasks of a job of this Spark session (`horovod.spark.run`) | a cluster |
| `torch` | started by torchrun on the driver's machine | one machine, without Horovod |
| `torch_spark` | tasks of a job of this Spark session (`TorchDistributor`) | a cluster, without Horovod |

All run `worker.main` over the same specification. The ranks of a Spark job need the training's folder and the
snapshot's files under the same path on every node, and as many free task slots at once as there are ranks.
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
from lam_spark.storage.files import drop_torn_line
from lam_spark.training.launch.worker import DRIVER_VARIABLE, FAILURE_FILE, PROGRESS_FILE, driver_name, main
from lam_spark.training.process_group import PATIENCE, run_on_spark
from lam_spark.training.progress import Progress
from lam_spark.training.spec import LOG_FILE, SPEC_FILE, TrainingSpec

_HOROVOD = {
    # A rank that never comes becomes an exit code instead of a hang.
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": str(int(PATIENCE.total_seconds())),
    # Its background thread wakes every millisecond by default; where ranks fill the cores, that is a tenth of
    # the speed (docs/benchmarks.md).
    "HOROVOD_CYCLE_TIME": "5",
}
_WORKER = ("-m", "lam_spark.training.launch.worker")
# What some launchers call; it stands beside the interpreter.
_PROGRAMS = {"horovod": "horovodrun", "torch": "torchrun"}
_POLL_SECONDS = 0.5
_LOG_TAIL_LINES = 30
_TORCHRUN_REPORT = "failed (exitcode: "
_MAY_QUOTE = "What else they said may quote a customer's row: LAM_SPARK_SHOW_VALUES=1 shows its end"


def launch(spec: TrainingSpec, follow: Progress) -> None:
    """Start the ranks and wait for their end; a failed rank ends all.

    Args:
        spec: saved as `SPEC_FILE` in its folder.
        follow: is called with each record that they tell, soon after they did.

    Raises:
        ModelError: a rank failed, with why and where its log is; or the launcher is not installed.
    """
    folder = Path(spec.folder)
    for failure in folder.glob(f"{FAILURE_FILE}*"):
        failure.unlink()  # of an earlier run
    progress = folder / PROGRESS_FILE
    progress.touch()
    drop_torn_line(progress)
    environment = {name: value for name, value in os.environ.items() if not spec.withholds(name)}
    with progress.open(encoding="utf-8") as lines:
        lines.seek(0, os.SEEK_END)  # what an earlier run has told is known

        def follow_news() -> None:
            for record in _new_records(lines):
                follow(record)

        _LAUNCHERS[spec.settings["launcher"]](spec, environment, follow_news)


def require_launcher(launcher: str) -> None:
    """Before stages work for hours for a training that cannot start.

    Raises:
        ModelError: what `training.launcher` needs is not installed.
    """
    if launcher in _PROGRAMS:
        _beside_python(_PROGRAMS[launcher])


def _in_process(spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]) -> None:
    _as_processes([sys.executable, *_WORKER], spec, environment, follow_news)


def _horovodrun(spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]) -> None:
    ranks = spec.settings["world_size"]
    command = [_beside_python(_PROGRAMS["horovod"]), "--gloo", "-np", str(ranks), "-H", f"localhost:{ranks}"]
    _as_processes([*command, sys.executable, *_WORKER], spec, environment, follow_news)


def _torchrun(spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]) -> None:
    command = [
        _beside_python(_PROGRAMS["torch"]),
        "--standalone",
        f"--nproc-per-node={spec.settings['world_size']}",
    ]
    _as_processes([*command, *_WORKER], spec, environment, follow_news)


def _beside_python(program: str) -> str:
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        raise ModelError(
            f"expected {program} at {path}: install what `make setup` installs, or choose another "
            "training.launcher (torch and in_process, with training.world_size 1, do without Horovod)"
        )
    return str(path)


def _as_processes(
    command: list[str], spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]
) -> None:
    """Ranks on this machine, which end when this process does."""
    folder, threads = Path(spec.folder), str(spec.settings["threads_per_rank"])
    environment = {
        **_HOROVOD,
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
                follow_news()
                time.sleep(_POLL_SECONDS)
            follow_news()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    if process.returncode != 0:
        _show(_tail(spec))
        raise ModelError(f"training stopped with exit code {process.returncode}{_causes(spec)}")


def _causes(spec: TrainingSpec) -> str:
    """Lines of what ranks said of their failures, as far as it may be written down, and of where the rest is."""
    folder = Path(spec.folder)
    lines = [file.read_text(encoding="utf-8") for file in sorted(folder.glob(f"{FAILURE_FILE}*"))]
    if (folder / LOG_FILE).exists():
        lines.append(f"Their log is {folder / LOG_FILE}")
    return "".join(f"\n{line}" for line in [*lines, _MAY_QUOTE])


def _show(text: str) -> None:
    """On stderr, if that is wanted: what others say may quote a customer's row."""
    if values_may_be_shown():
        print(text, file=sys.stderr, flush=True)


def _tail(spec: TrainingSpec) -> str:
    """The ranks' last words, where they were kept, without the longer report that torchrun writes below them."""
    log = Path(spec.folder) / LOG_FILE
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    report = next((number for number, line in enumerate(lines) if _TORCHRUN_REPORT in line), len(lines))
    return "\n".join(lines[: report + 1][-_LOG_TAIL_LINES:])


def _horovod_spark(
    spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]
) -> None:
    def run(path: str) -> None:
        with (Path(spec.folder) / LOG_FILE).open("w") as log:
            run_on_spark(lambda: main([path]), spec.settings["world_size"], {**_HOROVOD, **environment}, log)

    _as_tasks(run, spec, follow_news)


def _torch_spark(spec: TrainingSpec, environment: Mapping[str, str], follow_news: Callable[[], None]) -> None:
    from pyspark.ml.torch.distributor import TorchDistributor

    def run(path: str) -> None:
        # It sends no environment: its ranks have that of their executors.
        # On executors with GPUs, Spark gives each task its own.
        gpus = SparkSession.active().conf.get("spark.task.resource.gpu.amount", "") != ""
        TorchDistributor(spec.settings["world_size"], local_mode=False, use_gpu=gpus).run(main, [path])

    _as_tasks(run, spec, follow_news)


def _as_tasks(run: Callable[[str], None], spec: TrainingSpec, follow_news: Callable[[], None]) -> None:
    """Ranks as tasks of a Spark job, which the session's end ends.

    The job is waited for here, since Horovod sets signal handlers, which only the main thread may; a thread follows.
    """
    over, failures = threading.Event(), []

    def watch() -> None:
        try:
            while not over.wait(_POLL_SECONDS):
                follow_news()
        except Exception as error:  # told below
            failures.append(error)

    watcher = threading.Thread(target=watch, name="follow-ranks", daemon=True)
    watcher.start()
    try:
        run(str(Path(spec.folder) / SPEC_FILE))
    except Exception as error:  # a launcher raises whatever its job did
        _show(f"{error}\n{_tail(spec)}")
        raise ModelError(
            f"training stopped: {without_values(error)}{_causes(spec)}\nMore may stand in the executors' logs"
        ) from error
    finally:
        over.set()
        watcher.join()
        follow_news()
    if failures:
        raise failures[0]


def _new_records(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """Whole lines that were written since the last look."""
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
