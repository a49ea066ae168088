"""Events to sequences, against polars and DuckDB: time, memory, growth, and a night's increment.

    python benchmarks/sequences.py [--small]

Four channels of 5 M events of 200 k customers (a few of them have most, one has a million) are joined with
consent, encoded, ordered and written out, a row a customer, on the same two cores. Each engine runs in a process
of its own, once to warm up and then three times; medians count. The peers write plain Parquet and leave out
the sums of what `max_events` cuts off. All three results are compared. Then our part at five times the customers
and events, built once, and at both sizes nights on which 1 % of the customers have new events.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from common import report, small_asked
from sequences_input import DAYS, FIRST_DAY, MICROS_PER_DAY, Size, customer_keys, drawn_events, write_input
from sequences_peers import CATEGORICAL, CORES, MAX_EVENTS, NUMERIC, duckdb_build, polars_build

_TIMED_RUNS = 3
_NIGHTS = 4
_PURPOSES = ("model_training", "direct_marketing")
_BASE, _SMALL = Size(200_000, 5_000_000), Size(10_000, 250_000)


def configuration(root: Path) -> dict[str, Any]:
    """The mapping of a configuration file with the benchmark's fields; its selects are never run."""
    fields = {name: {"role": "what", "kind": "categorical"} for name in CATEGORICAL}
    fields |= {name: {"role": "how", "kind": "numeric"} for name in NUMERIC}
    return {
        "name": "sequences",
        "root": str(root),
        "as_of": "2025-01-01",
        "inputs": {"log": {"format": "parquet", "path": "{root}/raw", "columns": "customer STRING"}},
        "channels": {"log": {"grain": "log", "select": "SELECT 1"}},
        "fields": fields,
        "consent": {"select": "SELECT 1"},
        "targets": {
            "any": {
                "description": "anything",
                "population": "true",
                "outcome_filter": "true",
                "horizon_days": "1",
                "baseline_filter": "true",
                "baseline_name": "anything",
            }
        },
        "split": {"train_start": "2023-06-01", "validation_start": "2024-05-01", "test_start": "2024-09-01"},
        "sequences": {"max_events": MAX_EVENTS},
        "scoring": {"target": "any", "proposals": "SELECT 1"},
        "spark": {"master": f"local[{CORES}]", "driver_memory": "3g"},
    }


class Ours:
    """The project's own code in one Spark session."""

    def __init__(self, root: Path) -> None:
        from lam_spark.config.load import load_config
        from lam_spark.runtime.session import spark_session

        root.mkdir(parents=True, exist_ok=True)
        conf = root / "conf.yaml"
        conf.write_text(yaml.safe_dump(configuration(root), sort_keys=False))
        self.config = load_config(conf)
        self.spark = spark_session(self.config.spark)
        self.spark.range(1).count()

    def run(self, workspace: Path, as_of: str, rebuild: bool = False) -> Any:
        """A run over a workspace, as the command line makes it."""
        from lam_spark.runtime.context import Run
        from lam_spark.runtime.log import Journal
        from lam_spark.storage.tables.store import Tables

        sequences = self.config.sequences.model_copy(update={"rebuild": rebuild})
        config = self.config.model_copy(
            update={"root": str(workspace), "as_of": dt.date.fromisoformat(as_of), "sequences": sequences}
        )
        tables = Tables(self.spark, workspace / "tables")
        return Run(
            config, "benchmark", dt.datetime.now(dt.UTC), self.spark, tables, Journal("benchmark", None)
        )

    def events(self, folder: Path) -> Any:
        """The four channels as one frame."""
        return self.spark.read.parquet(*(str(path) for path in sorted(folder.glob("channel_*.parquet"))))

    def write_vocabulary(self, folder: Path, workspace: Path) -> None:
        """Make the vocabulary table, and a copy for the peers."""
        from lam_spark.sequences.vocabulary import count_values, extend_vocabulary

        run = self.run(workspace, "2025-01-01")
        run.tables.overwrite(count_values(self.events(folder), run.config), "value_counts")
        extend_vocabulary(run, run.tables.read("value_counts"))
        rows = run.tables.read("vocabulary").select("field", "value", "token_id").toPandas()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "vocabulary.parquet")

    def build(self, folder: Path, workspace: Path) -> None:
        """From the channels to the written table: what the peers do too."""
        from lam_spark.sequences.settings import BUILD_SETTINGS
        from lam_spark.storage.settings import session_settings

        from lam_spark.sequences.build import Assembler

        run = self.run(workspace, "2025-01-01")
        allowed = self.spark.read.parquet(str(folder / "allowed.parquet"))
        with run.letting_go(), session_settings(self.spark, BUILD_SETTINGS):
            assembler = Assembler(run, run.keep(run.tables.read("vocabulary")))
            events = self.events(folder)
            count = events.count()
            run.tables.overwrite(assembler.rows(events, allowed, count, longest=count), "sequences")

    def result(self, workspace: Path) -> list[str]:
        """Files of the written table."""
        run = self.run(workspace, "2025-01-01")
        return [path.removeprefix("file://") for path in run.tables.read("sequences").inputFiles()]

    def jvm_peak_gib(self) -> float:
        """Highest resident set of the Java process so far, heap and all else."""
        for process in psutil.Process().children(recursive=True):
            if "java" in process.name():
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
                return int(peak) / 2**20
        raise RuntimeError("the session has no Java process")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result


def spark_side(pipe: Connection, folder: Path, root: Path, size: Size, builds: int) -> None:
    """Our part at one size: answers each request with its figures."""
    ours = Ours(root)
    ours.write_vocabulary(folder, root)
    pipe.send(None)  # ready: the peers' vocabulary is written
    for request in iter(pipe.recv, "stop"):
        if request == "build":
            pipe.send(timed(lambda: ours.build(folder, root))[0])
        elif request == "digest":
            pipe.send(digest_of(ours.result(root)))
        elif request == "nights":
            pipe.send(nights(ours, folder, root / "nightly", size, builds))
        elif request == "memory":
            pipe.send(ours.jvm_peak_gib())
    ours.spark.stop()


def peer_side(pipe: Connection, name: str, folder: Path, root: Path) -> None:
    """A peer's part."""
    root.mkdir(parents=True)
    target = root / "sequences.parquet"
    build = {"duckdb": duckdb_build, "polars": polars_build}[name](folder)
    for request in iter(pipe.recv, "stop"):
        if request == "build":
            pipe.send(timed(lambda: build(target))[0])
        elif request == "digest":
            pipe.send(digest_of([str(target)]))
        elif request == "memory":
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
            pipe.send(int(peak) / 2**20)


class Side:
    """An engine in a process of its own, asked through a pipe."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments))
        self._process.start()
        theirs.close()

    def ask(self, request: str) -> Any:
        """Send a request and wait for the answer."""
        self._pipe.send(request)
        return self.answer()

    def answer(self) -> Any:
        """Wait for an answer."""
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self._process.join()


def digest_of(files: list[str]) -> str:
    """What a result holds: customers in the order of their keys, lengths, and every event in order."""
    columns = ["customer_key", "events_seen", "event_time", *CATEGORICAL, "amount"]
    rows = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    rows = rows.take(pc.sort_indices(rows["customer_key"]))
    found = hashlib.sha256("".join(rows["customer_key"].to_pylist()).encode())
    found.update(rows["events_seen"].cast(pa.int64()).to_numpy().tobytes())
    found.update(pc.list_value_length(rows["event_time"]).cast(pa.int64()).to_numpy().tobytes())
    for name in columns[2:]:
        flat = pc.list_flatten(rows[name])
        kind = pa.float32() if name == "amount" else pa.int64()
        found.update(flat.cast(kind).to_numpy().tobytes())
    return found.hexdigest()


def nights(ours: Ours, folder: Path, workspace: Path, size: Size, builds: int) -> dict[str, float]:
    """Seconds of the stage: built whole (so many times), and on nights with new events of 1 % of the customers."""
    from pyspark.sql import functions as F

    from lam_spark.sequences import stage as assemble

    run = ours.run(workspace, "2025-01-01")
    stamped = {"source": F.lit("benchmark"), "ingested_at": F.current_timestamp()}
    run.tables.append(ours.events(folder).withColumns(stamped), "events")
    allowed = ours.spark.read.parquet(str(folder / "allowed.parquet"))
    purposes = F.explode(F.array(*map(F.lit, _PURPOSES))).alias("purpose")
    asked = F.lit("2023-01-01").cast("timestamp")
    run.tables.append(
        allowed.select(
            "customer_key",
            purposes,
            F.lit("opt_in").alias("state"),
            asked.alias("effective_at"),
            asked.alias("recorded_at"),
            F.lit("benchmark").alias("source"),
        ),
        "consent",
    )
    whole = [
        timed(lambda: assemble.run(ours.run(workspace, "2025-01-01", rebuild=True)))[0] for _ in range(builds)
    ]
    keys = customer_keys(size.customers, 4)
    increments = []
    for night in range(_NIGHTS):
        rng = np.random.default_rng([5, night])
        chosen = rng.choice(size.customers, size.customers // 100, replace=False)
        who = np.repeat(chosen, rng.integers(1, 10, len(chosen)))
        day = FIRST_DAY.astype(np.int64) + (DAYS + night) * MICROS_PER_DAY
        late = np.where(rng.random(len(who)) < 0.1, rng.integers(0, 60, len(who)), 0) * MICROS_PER_DAY
        times = day + rng.integers(0, MICROS_PER_DAY, len(who)) - late
        new = folder / f"night_{night}.parquet"
        pq.write_table(drawn_events(rng, keys, who, times), new)
        run.tables.append(ours.spark.read.parquet(str(new)).withColumns(stamped), "events")
        as_of = str(np.datetime64("2025-01-02") + night)
        seconds, result = timed(lambda as_of=as_of: assemble.run(ours.run(workspace, as_of)))
        increments.append(seconds)
        print(f"  night {night}: {seconds:.1f} s, {result.facts['mode']}, {result.counts}", flush=True)
        assert result.facts["mode"] == "update"
    # What comes first warms up, where there is more than one.
    return {
        "whole": statistics.median(whole[1:] or whole),
        "night": statistics.median(increments[1:]),
    }


def compare(folder: Path, root: Path, size: Size) -> dict[str, float]:
    """The three engines in turn, then our nights."""
    sides = {"ours": Side(spark_side, folder, root / "ours", size, _TIMED_RUNS)}
    sides["ours"].answer()
    sides |= {name: Side(peer_side, name, folder, root / name) for name in ("duckdb", "polars")}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + _TIMED_RUNS):
        for name, side in sides.items():
            seconds[name].append(side.ask("build"))
            print(f"  {name:<8} {seconds[name][-1]:6.1f} s", flush=True)
    digests = {name: side.ask("digest") for name, side in sides.items()}
    if len(set(digests.values())) != 1:
        sys.exit(f"the results differ: {digests}")
    figures = {f"{name}_seconds": statistics.median(times[1:]) for name, times in seconds.items()}
    figures |= {f"{name}_peak_gib": sides[name].ask("memory") for name in ("duckdb", "polars")}
    for name in ("duckdb", "polars"):
        sides[name].stop()
    nightly = sides["ours"].ask("nights")
    figures |= {"whole_stage_seconds": nightly["whole"], "night_seconds": nightly["night"]}
    figures["jvm_peak_gib"] = sides["ours"].ask("memory")
    sides["ours"].stop()
    return figures


def grown(folder: Path, root: Path, size: Size) -> dict[str, float]:
    """Our part alone, at one larger size."""
    side = Side(spark_side, folder, root, size, 1)
    side.answer()
    seconds = side.ask("build")
    print(f"  ours     {seconds:6.1f} s", flush=True)
    nightly = side.ask("nights")
    figures = {"seconds": seconds, "jvm_peak_gib": side.ask("memory"), **nightly}
    side.stop()
    return figures


def main() -> None:
    size = _SMALL if small_asked(__doc__) else _BASE
    large = Size(5 * size.customers, 5 * size.events)
    with tempfile.TemporaryDirectory(prefix="sequences-") as name:
        root = Path(name)
        print(f"{size.total:,} events of {size.customers:,} customers", flush=True)
        write_input(root / "input", size)
        figures = compare(root / "input", root / "base", size)
        shutil.rmtree(root / "input")
        shutil.rmtree(root / "base")
        print(f"{large.total:,} events of {large.customers:,} customers", flush=True)
        write_input(root / "input", large)
        five = grown(root / "input", root / "large", large)
    figures |= {
        "vs_duckdb": figures["ours_seconds"] / figures["duckdb_seconds"],
        "vs_polars": figures["ours_seconds"] / figures["polars_seconds"],
        "time_at_5x": five["seconds"] / figures["ours_seconds"],
        "incremental_1pct": figures["night_seconds"] / figures["whole_stage_seconds"],
        "incremental_1pct_at_5x": five["night"] / five["whole"],
        "jvm_peak_gib_at_5x": five["jvm_peak_gib"],
        "seconds_at_5x": five["seconds"],
    }
    figures["jvm_peak_gib"] = max(figures["jvm_peak_gib"], five["jvm_peak_gib"])
    targets = {
        "vs_duckdb": ("<=", 1.0),
        "vs_polars": ("<=", 2.5),
        "jvm_peak_gib": ("<=", 4.0),
        "time_at_5x": ("<=", 6.0),
        "incremental_1pct": ("<=", 0.10),
    }
    report("sequences", {key: float(value) for key, value in figures.items()}, targets)


if __name__ == "__main__":
    main()
