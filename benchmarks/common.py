"""What every benchmark shares: the workspace, the table for people, the JSON line for machines."""

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
UP_TO_SNAPSHOT = ("fetch", "ingest", "consent", "sequences", "examples", "snapshot")
# One for all calls of this process: the tables of a workspace depend on it.
_SECRET = secrets.token_hex(32)


def command_line(description: str | None, keeps_folder: bool = False) -> argparse.ArgumentParser:
    """What every benchmark takes: --small; and --folder, where one keeps what is finished."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--small", action="store_true", help="a quick run; its figures are not for the record"
    )
    if keeps_folder:
        parser.add_argument("--folder", type=Path, help="where to keep what is finished, and to go on from")
    return parser


def small_asked(description: str | None) -> bool:
    """Read the command line; True for --small."""
    return bool(command_line(description).parse_args().small)


@contextlib.contextmanager
def kept_folder(asked: Path | None, prefix: str, origin: str) -> Iterator[Path]:
    """The folder that was asked for, which stays; or one that goes away at the end.

    Args:
        asked: for which folder.
        prefix: of the other's name.
        origin: what the figures depend on, say `origin_digest`.

    Raises:
        SystemExit: what is in it came of something else: figures of two are not to be mixed.
    """
    if asked is None:
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield Path(folder)
        return
    asked.mkdir(parents=True, exist_ok=True)
    place = asked / "origin"
    if not any(asked.iterdir()):
        place.write_text(origin, encoding="utf-8")
    elif not place.exists() or place.read_text(encoding="utf-8") != origin:
        sys.exit(f"{asked} was begun with other code or settings: go on with that, or begin a folder anew")
    yield asked.absolute()


def origin_digest(small: bool) -> str:
    """Of the package's sources, the configurations, and whether --small was asked for."""
    digest = hashlib.sha256(b"small" if small else b"whole")
    for path in sorted([*REPOSITORY.glob("lam_spark/**/*.py"), *REPOSITORY.glob("conf/*.yaml")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def kept_secret(folder: Path) -> str:
    """The secret of the workspaces in a folder: drawn the first time, the same when a run goes on there."""
    place = folder / "secret"
    if not place.exists():
        place.touch(mode=0o600)
        place.write_text(secrets.token_hex(32), encoding="utf-8")
    return place.read_text(encoding="utf-8")


def lam_spark(stage: str, conf: Path, root: Path, *overrides: str, **environment: str) -> dict[str, Any]:
    """Run a stage as users do and give its summary line; its log goes to stderr.

    Raises:
        SystemExit: it failed.
    """
    flags = [flag for pair in (f"root={root}", *overrides) for flag in ("--set", pair)]
    done = subprocess.run(
        [sys.executable, "-m", "lam_spark.cli", stage, "--conf", str(conf), *flags],
        cwd=REPOSITORY,
        env={"LAM_SPARK_SECRET": _SECRET, **os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if done.returncode:
        sys.exit(f"lam-spark {stage} failed: {summary.get('error')}")
    return summary


def fill(conf: Path, root: Path, *overrides: str) -> None:
    """Run the stages up to the training snapshot."""
    for stage in UP_TO_SNAPSHOT:
        lam_spark(stage, conf, root, *overrides)


def open_run(conf: Path, root: Path, *overrides: str) -> Any:
    """A `lam_spark.runtime.context.Run` over a workspace that stages have filled, with a session of its own."""
    from lam_spark.config.load import load_config
    from lam_spark.runtime.context import Run
    from lam_spark.runtime.log import Journal
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables.store import Tables

    config = load_config(conf, overrides=[f"root={root}", *overrides])
    spark = spark_session(config.spark)
    tables, journal = Tables(spark, root / "tables"), Journal("benchmark", None)
    return Run(config, "benchmark", dt.datetime.now(dt.UTC), spark, tables, journal)


def stage_records(root: Path, run_id: str) -> dict[str, dict[str, Any]]:
    """What a run's log says of each finished stage: seconds, peak_memory_gib, counts."""
    lines = (root / "logs" / f"{run_id}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r["stage"]: r for r in records if r["event"] == "stage done"}


def report(name: str, figures: Mapping[str, float], targets: Mapping[str, tuple[str, float]]) -> None:
    """Print the table, then the one JSON line."""
    width = max(len(key) for key in figures)
    print()
    for key, value in figures.items():
        line = f"  {key:<{width}}  {value:>12,.4g}"
        if key in targets:
            sign, limit = targets[key]
            held = value <= limit if sign == "<=" else value >= limit
            line += f"   target {sign} {limit:g}: {'met' if held else 'MISSED'}"
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
