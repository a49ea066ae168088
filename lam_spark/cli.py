"""The command line: `lam-spark run`, or one stage. Jobs under spark-submit come through `run_stage`."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import secrets
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.config.flags import FlagParser
from lam_spark.config.load import load_config
from lam_spark.errors import ConfigError, LamSparkError, did_you_mean, values_may_be_shown, without_values
from lam_spark.runtime.context import Run, Stage, StageResult
from lam_spark.runtime.lock import workspace_lock
from lam_spark.runtime.log import Journal

if TYPE_CHECKING:
    from lam_spark.runtime.audit import Chain

# Stage -> module with `run(run: Run) -> StageResult`, in the order of the data's flow.
STAGES = {
    "fetch": "lam_spark.datasets.stage",
    "ingest": "lam_spark.events.stage",
    "consent": "lam_spark.consent.stage",
    "sequences": "lam_spark.sequences.stage",
    "examples": "lam_spark.labels.stage",
    "snapshot": "lam_spark.training_data.stage",
    "train": "lam_spark.training.stage",
    "score": "lam_spark.scoring.stage",
    "evaluate": "lam_spark.evaluation.stage",
    "deliver": "lam_spark.delivery.stage",
    "report": "lam_spark.report.stage",
}
# Stages that `run` leaves out. Vectors say as much about a customer as the events do: nobody should have them lying
# about because a night made them, so whoever has a use for them asks.
ON_REQUEST = {"embed": "lam_spark.scoring.embeddings"}
_PURPOSES = {
    "fetch": "raw files of the data sets that ship with the project",
    "ingest": "raw inputs -> events, checked and counted",
    "consent": "the ledger: who agreed to what, and until when",
    "sequences": "events -> one row a customer, the events in order",
    "examples": "questions with the answers that followed, point in time",
    "snapshot": "sequences and examples -> packed blocks, one version",
    "train": "the model: pre-training, fine-tuning, calibration, refit; registered in MLflow",
    "score": "customers who agreed x proposals -> probabilities",
    "evaluate": "the model and the rule on questions that it has not learned from",
    "deliver": "the contact list, after the ledger was asked once more",
    "report": "one HTML page of what this run did and why its list can be trusted",
    "embed": "a vector a customer, for models of your own",
}
# Stages that turn raw ids into pseudonyms.
_MAKE_PSEUDONYMS = {"ingest", "consent", "deliver"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `lam-spark`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if given == ["--version"]:
        print(f"lam-spark {__version__}")
        return 0
    if given[0] == "plan":
        from lam_spark.training.cost_command import plan_training

        return _summed_up({"stage": "plan"}, lambda: plan_training(given[1:]))
    return run_stage(given[0], given[1:])


def run_stage(stage: str, arguments: Sequence[str]) -> int:
    """Run one stage, or all (`run`), with the flags of every stage; returns the exit code.

    The last line on stdout is one JSON object that sums the run up.
    """
    run_id = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"

    def work() -> dict[str, Any]:
        flags = _parse(stage, arguments)
        config = load_config(flags.conf, flags.as_of, flags.set)
        names = list(STAGES) if stage == "run" else [stage]
        return _plan(config, names) if flags.dry_run else _execute(config, names, run_id)

    return _summed_up({"run_id": run_id, "stage": stage}, work)


def _summed_up(summary: dict[str, Any], work: Callable[[], dict[str, Any]]) -> int:
    """Do the work; errors go to stderr, the summary to stdout's last line, the exit code to the caller."""
    stage = summary["stage"]
    try:
        summary |= work()
        summary |= {"status": "done", "exit_code": 0}
    except LamSparkError as error:
        summary |= {"status": "failed", "exit_code": error.exit_code, "error": str(error)}
        print(f"lam-spark {stage}: {type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        summary |= {"status": "interrupted", "exit_code": 130}
        print(f"lam-spark {stage}: interrupted; the last good tables stand", file=sys.stderr)
    except Exception as error:
        summary |= {"status": "failed", "exit_code": 1, "error": without_values(error)}
        if values_may_be_shown():
            traceback.print_exc()
        else:
            print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)
            hint = "its text may quote a customer's row; LAM_SPARK_SHOW_VALUES=1 shows it"
            print(f"lam-spark {stage}: {without_values(error)} ({hint})", file=sys.stderr)
    print(json.dumps(summary, default=str), flush=True)
    return int(summary["exit_code"])


def _execute(config: Config, names: Sequence[str], run_id: str) -> dict[str, Any]:
    # Imported late: --help, --dry-run and a wrong configuration answer before a JVM starts.
    from lam_spark.identity.pseudonyms import secret_from_environment
    from lam_spark.runtime.audit import Chain
    from lam_spark.runtime.session import spark_session
    from lam_spark.runtime.signals import interruptible
    from lam_spark.storage.tables import Tables
    from lam_spark.training.launch.launchers import require_launcher

    if not _MAKE_PSEUDONYMS.isdisjoint(names):
        secret_from_environment(config.identity.secret_env)  # before an earlier stage has worked for nothing
    if "train" in names:
        require_launcher(config.training.launcher)
    workspace = config.workspace.absolute()
    config = config.model_copy(update={"root": str(workspace)})
    with workspace_lock(workspace, run_id):
        journal = Journal(run_id, workspace / "logs")
        try:
            journal.event(
                "run started", stages=list(names), config_digest=config.digest(), root=str(workspace)
            )
            spark = spark_session(config.spark)
            run = Run(
                config=config,
                run_id=run_id,
                started_at=dt.datetime.now(dt.UTC),
                spark=spark,
                tables=Tables(spark, workspace / "tables"),
                journal=journal,
            )
            with interruptible(spark):
                undone = run.tables.undo()
                if undone:
                    journal.event("unfinished publication undone", level="warning", tables=undone)
                chain = Chain(run)
                results = {name: _one_stage(run, chain, name) for name in names}
        finally:
            journal.close()
    return {
        "as_of": config.as_of,
        "stages": {name: result.counts for name, result in results.items()},
        **results[names[-1]].facts.get("summary", {}),
    }


def _one_stage(run: Run, chain: Chain, name: str) -> StageResult:
    from lam_spark.runtime.audit import Cost
    from lam_spark.runtime.monitor import Monitor

    run.tables.read_versions.clear()
    run.tables.written_versions.clear()
    run.journal.event("stage started", stage=name)
    monitor = Monitor(name, run.spark, run.journal)

    def cost() -> Cost:
        return Cost(monitor.seconds, round(monitor.peak_memory_gib, 2))

    try:
        with monitor:
            stage: Stage = importlib.import_module((STAGES | ON_REQUEST)[name]).run
            result = stage(run)
    except BaseException as error:
        failure = without_values(error)
        run.journal.event("stage failed", level="error", stage=name, error=failure, **vars(cost()))
        try:
            chain.append(name, None, cost(), failure)
        except Exception as second:  # the first error is the one to show; this one is in the log
            run.journal.event(
                "failure not recorded in audit", level="error", stage=name, error=without_values(second)
            )
        raise
    chain.append(name, result, cost())
    run.journal.event("stage done", stage=name, says=result.says, counts=result.counts, **vars(cost()))
    run.journal.say(
        f"[green]✓[/] [bold]{name:<10}[/] {monitor.seconds:6.1f} s {monitor.peak_memory_gib:5.1f} GiB  "
        f"{escape(result.says)}"
    )
    for line in result.facts.get("lines", ()):
        run.journal.say(f"  {escape(line)}")
    for table in run.tables.written_versions:
        try:
            files = run.tables.compact(table)
        except Exception as error:  # the stage is done and recorded, and the next night joins them as well
            run.journal.event(
                "small files not joined", level="warning", table=table, error=without_values(error)
            )
            continue
        if files:
            run.journal.event("small files joined", table=table, files=files)
    return result


def _plan(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """What a run would do, for --dry-run: nothing is read but the configuration, nothing is written."""
    return {
        "dry_run": True,
        "stages": list(names),
        "root": str(Path(config.root).absolute()),
        "as_of": config.instant(config.as_of).isoformat(),
        "config_digest": config.digest(),
        "config": config.model_dump(mode="json"),
    }


def _parse(stage: str, arguments: Sequence[str]) -> argparse.Namespace:
    known = ["run", *STAGES, *ON_REQUEST]
    if stage not in known:
        every = f"expected run or one of {', '.join(known[1:])}"
        raise ConfigError(f"unknown stage {stage!r}: {did_you_mean(stage, known, every)}")
    parser = FlagParser(f"lam-spark {stage}", "--conf FILE --as-of DATE --set key=value --dry-run")
    parser.add_argument("--conf", required=True, metavar="FILE", help="YAML file of the data set")
    parser.add_argument("--as-of", metavar="DATE", help="replaces the file's as_of")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one key")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    return parser.parse_args(list(arguments))


def _usage() -> str:
    stages, further = (
        "\n".join(f"  {name:<10} {_PURPOSES[name]}" for name in names) for names in (STAGES, ON_REQUEST)
    )
    return (
        "usage: lam-spark run|STAGE --conf FILE [--as-of DATE] [--set key=value]... [--dry-run]\n"
        "       lam-spark plan --train --conf FILE [--size NAME] [--customers N --events N] ...: its cost on paper\n"
        "       lam-spark --version\n\n"
        f"stages, in order ('run' does them all):\n{stages}\n\n"
        f"what only a command of its own does:\n{further}\n\n"
        "exit codes: 0 done, 1 unexpected, 2 configuration, 3 data quality, 4 consent, 5 model,\n"
        "            6 another run holds the workspace, 130 interrupted"
    )


if __name__ == "__main__":
    sys.exit(main())
