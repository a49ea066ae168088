"""What all benchmarks share: command line, workspaces, run context, the printed table and its JSON line."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RETAILER_CONF = REPOSITORY / "conf/complete_journey.yaml"
TELECOM_CONF = REPOSITORY / "conf/telecom.yaml"
PURCHASE_LOG_CONF = REPOSITORY / "conf/purchase_log.yaml"
STAGES_UP_TO_SNAPSHOT = ("fetch", "ingest", "consent", "sequences", "examples", "snapshot")
# Consent ledger of the retailer in which every household opted in.
EVERYONE_OPTED_IN = "fetch.arguments={seed: 20170101, opted_in: 1.0}"
# A small model and one epoch of each phase: enough to see that a script works.
SMOKE_TRAINING = (
    "training.pretrain_epochs=1",
    "training.finetune_epochs=1",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
)
_RUN_UP_TO_SNAPSHOT = """
import pathlib, sys
from benchmarks import common
from lam_spark.runtime.runner import run_stages
conf, root, *overrides = sys.argv[1:]
run_stages(common.load(pathlib.Path(conf), pathlib.Path(root), *overrides), common.STAGES_UP_TO_SNAPSHOT)
"""
# One secret per process, because the tables of a workspace depend on it.
_SECRET = secrets.token_hex(32)


def command_line(description: str | None, with_folder: bool = False) -> argparse.ArgumentParser:
    """Parser with `--smoke`, and with `--folder` for scripts that can resume."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="smallest size; figures are not for the record")
    if with_folder:
        parser.add_argument("--folder", type=Path, help="keep finished parts here and resume from them")
    return parser


def smoke_requested(description: str | None) -> bool:
    """Parse the command line of a script without other options; True for `--smoke`."""
    return bool(command_line(description).parse_args().smoke)


@contextlib.contextmanager
def resumable_folder(folder: Path | None, prefix: str, origin: str) -> Iterator[Path]:
    """The requested folder, which persists, or a temporary one.

    Args:
        folder: requested folder, or None.
        prefix: name prefix of the temporary folder.
        origin: digest of everything the figures depend on, see `origin_digest`.

    Raises:
        SystemExit: the folder holds results of another origin.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=prefix) as temporary:
            yield Path(temporary)
        return
    folder.mkdir(parents=True, exist_ok=True)
    origin_file = folder / "origin"
    if not any(folder.iterdir()):
        origin_file.write_text(origin, encoding="utf-8")
    elif not origin_file.exists() or origin_file.read_text(encoding="utf-8") != origin:
        sys.exit(
            f"{folder}: expected results of this code and these settings, found others: use an empty folder"
        )
    yield folder.absolute()


def origin_digest(smoke: bool) -> str:
    """sha256 of the package's sources, the configurations and the `--smoke` flag."""
    digest = hashlib.sha256(b"smoke" if smoke else b"full")
    for path in sorted([*REPOSITORY.glob("lam_spark/**/*.py"), *REPOSITORY.glob("conf/*.yaml")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def stored_secret(folder: Path) -> str:
    """Pseudonym secret of the workspaces in a folder: drawn once, reused when a run resumes."""
    path = folder / "secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def lam_spark(stage: str, conf: Path, root: Path, *overrides: str, **environment: str) -> dict[str, Any]:
    """Run a stage with the command line and return its summary; its log goes to stderr.

    Raises:
        SystemExit: the stage failed.
    """
    flags = [flag for pair in (f"root={root}", *overrides) for flag in ("--set", pair)]
    process = subprocess.run(
        [sys.executable, "-m", "lam_spark.cli", stage, "--conf", str(conf), *flags],
        cwd=REPOSITORY,
        env=_environment() | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    summary: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    if process.returncode:
        sys.exit(f"lam-spark {stage} failed: {summary.get('error')}")
    return summary


def run_stage(stage: str, conf: Path, root: Path, *overrides: str) -> dict[str, Any]:
    """Run a stage and return its log record (seconds, peak_memory_gib, counts, message)."""
    run_id = lam_spark(stage, conf, root, *overrides)["run_id"]
    return stage_records(root, run_id)[stage]


def run_up_to_snapshot(conf: Path, root: Path, *overrides: str) -> None:
    """Run the stages up to the training snapshot in one process, whose memory is free again afterwards.

    Raises:
        SystemExit: a stage failed.
    """
    process = subprocess.run(
        [sys.executable, "-c", _RUN_UP_TO_SNAPSHOT, str(conf), str(root), *overrides],
        cwd=REPOSITORY,
        env=_environment(),
        check=False,
    )
    if process.returncode:
        sys.exit(f"the stages up to the snapshot failed in {root}")


def _environment() -> dict[str, str]:
    return {"LAM_SPARK_SECRET": _SECRET, **os.environ}


def load(conf: Path, root: Path, *overrides: str) -> Any:
    """The configuration of a workspace."""
    from lam_spark.config.load import load_config

    return load_config(conf, overrides=[f"root={root}", *overrides])


def open_context(config: Any, spark: Any = None) -> Any:
    """The run context of a workspace; the only place where benchmarks build one.

    Args:
        config: from `load`.
        spark: session to use; a new one by default.
    """
    from lam_spark.runtime.context import RunContext
    from lam_spark.runtime.log import RunLog
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables.store import Tables

    session = spark or spark_session(config.spark)
    tables = Tables(session, config.workspace / "tables")
    return RunContext(
        config, "benchmark", dt.datetime.now(dt.UTC), session, tables, RunLog("benchmark", None)
    )


def stage_records(root: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """Log records of a run's finished stages: seconds, peak_memory_gib, counts, message."""
    lines = (root / "logs" / f"{run_id}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {record["stage"]: record for record in records if record["event"] == "stage done"}


def report(name: str, figures: Mapping[str, float], targets: Mapping[str, tuple[str, float]]) -> None:
    """Print the figures as a table with their targets, then as one JSON line."""
    width = max(len(key) for key in figures)
    print()
    for key, value in figures.items():
        line = f"  {key:<{width}}  {value:>12,.4g}"
        if key in targets:
            sign, limit = targets[key]
            met = value <= limit if sign == "<=" else value >= limit
            line += f"   target {sign} {limit:g}: {'met' if met else 'MISSED'}"
        print(line)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(
        json.dumps(
            {
                "name": name,
                "machine": machine,
                "figures": dict(figures),
                "targets": {key: list(value) for key, value in targets.items()},
            }
        )
    )
