"""The command line: arguments in, exit code out. Jobs under spark-submit come through `run_job`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.config.flags import FlagParser
from lam_spark.config.load import load_config
from lam_spark.errors import (
    EXIT_CODES,
    ConfigError,
    LamSparkError,
    did_you_mean,
    exit_code_of,
    values_may_be_shown,
    without_values,
)
from lam_spark.masking import masked
from lam_spark.runtime.signals import interruptible
from lam_spark.stages import NIGHTLY, STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `lam-spark`; returns the exit code."""
    argument_list = list(sys.argv[1:] if arguments is None else arguments)
    if not argument_list or argument_list[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argument_list == ["--version"]:
        print(f"lam-spark {__version__}")
        return 0
    if argument_list[0] == "plan":
        from lam_spark.training.cost_command import plan_training

        return _summarise({"stage": "plan"}, lambda: plan_training(argument_list[1:]))
    return run_job(argument_list[0], argument_list[1:])


def run_job(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one stage, or all nightly ones (`run`), with the flags of every stage; returns the exit code.

    The last line on stdout is one JSON object that summarises the run.
    """
    summary: dict[str, Any] = {"run_id": None, "stage": name}

    def work() -> dict[str, Any]:
        flags = _parse(name, sys.argv[1:] if arguments is None else arguments)
        config = load_config(flags.conf, flags.as_of, flags.set)
        names = NIGHTLY if name == "run" else (name,)
        return _plan(config, names) if flags.dry_run else _run(config, names, summary)

    return _summarise(summary, work)


def _run(config: Config, names: Sequence[str], summary: dict[str, Any]) -> dict[str, Any]:
    # Imported late: help, --dry-run and a wrong configuration answer without pyspark.
    from lam_spark.runtime.runner import new_run_id, run_stages

    summary["run_id"] = new_run_id()
    results = run_stages(config, names, run_id=summary["run_id"])
    warnings = [f"{name}: {warning}" for name, result in results.items() for warning in result.warnings]
    for warning in warnings:
        print(warning)
    return {
        "as_of": config.as_of,
        "stages": {name: dict(result.counts) for name, result in results.items()},
        "warnings": warnings,
        **results[names[-1]].summary,
    }


def _summarise(summary: dict[str, Any], work: Callable[[], dict[str, Any]]) -> int:
    """Do the work; errors go to stderr, the summary to the last line of stdout, the exit code to the caller."""
    stage = summary["stage"]
    try:
        with interruptible():
            summary |= work()
        summary |= {"status": "done", "exit_code": 0}
    except LamSparkError as error:
        summary |= {"status": "failed", "exit_code": exit_code_of(error), "error": masked(str(error))}
        print(f"lam-spark {stage}: {without_values(error)}", file=sys.stderr)
    except KeyboardInterrupt as error:
        summary |= {"status": "interrupted", "exit_code": exit_code_of(error)}
        print(f"lam-spark {stage}: interrupted; the last good tables are unchanged", file=sys.stderr)
    except Exception as error:
        summary |= {"status": "failed", "exit_code": exit_code_of(error), "error": without_values(error)}
        if values_may_be_shown():
            print(masked(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)
            hint = "its text may quote a customer's row; LAM_SPARK_SHOW_VALUES=1 shows it"
            print(f"lam-spark {stage}: {without_values(error)} ({hint})", file=sys.stderr)
    print(json.dumps(summary, default=str), flush=True)
    return int(summary["exit_code"])


def _plan(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Stages and resolved configuration of a run, for --dry-run. Only the configuration is read."""
    return {
        "dry_run": True,
        "stages": list(names),
        "root": str(Path(config.root).absolute()),
        "as_of": config.instant(config.as_of).isoformat(),
        "config_digest": config.digest(),
        "config": config.model_dump(mode="json"),
    }


def _parse(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    names = ["run", *STAGES]
    if name not in names:
        expected = f"expected run or one of {', '.join(STAGES)}"
        raise ConfigError(f"unknown stage {name!r}: {did_you_mean(name, names, expected)}")
    parser = FlagParser(f"lam-spark {name}", "--conf FILE --as-of DATE --set key=value --dry-run")
    parser.add_argument("--conf", required=True, metavar="FILE", help="YAML file of the data set")
    parser.add_argument("--as-of", metavar="DATE", help="replaces as_of of the file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one key")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and stop")
    return parser.parse_args(list(arguments))


def _usage() -> str:
    nightly, on_request = (
        "\n".join(
            f"  {name:<10} {stage.purpose}" for name, stage in STAGES.items() if stage.nightly == is_nightly
        )
        for is_nightly in (True, False)
    )
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    return (
        "usage: lam-spark run|STAGE --conf FILE [--as-of DATE] [--set key=value]... [--dry-run]\n"
        "       lam-spark plan --train --conf FILE [--size NAME] [--customers N --events N] ...: estimate the cost\n"
        "       lam-spark --version\n\n"
        f"stages, in order ('run' includes them all):\n{nightly}\n\n"
        f"on request only:\n{on_request}\n\n"
        + textwrap.fill(f"exit codes: {codes}", width=88, subsequent_indent=" " * 12)
    )


if __name__ == "__main__":
    sys.exit(main())
