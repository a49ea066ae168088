"""Events to sequences compared with DuckDB and polars: time, memory, growth, and a nightly update.

    python -m benchmarks.scale.sequences [--smoke]

Four channels of 5 million events of 200,000 customers (skewed; one customer has a million events) are joined with
consent, encoded, ordered and written, one row a customer, on two cores. Each engine runs in its own process: one
warm-up run, then three timed ones, of which the median counts. The baselines write plain Parquet without the sums of
truncated history. The three results must be equal. Then our build at five times the customers and events, and at both
sizes nights with new events of 1 % of the customers. `--smoke`: 100,000 events of 2,000 customers, one timed run.
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
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from benchmarks.baselines.sequences import CATEGORICAL, CORES, MAX_EVENTS, NUMERIC, duckdb_build, polars_build
from benchmarks.common import load, open_context, report, smoke_requested
from benchmarks.support.sequences_input import (
    DAYS,
    FIRST_DAY,
    MICROS_PER_DAY,
    Size,
    customer_keys,
    draw_events,
    write_input,
)

if TYPE_CHECKING:
    from lam_spark.runtime.context import RunContext

_PURPOSES = ("model_training", "direct_marketing")
_AS_OF = "2025-01-01"
TARGETS = {
    "vs_duckdb": ("<=", 1.0),
    "vs_polars": ("<=", 2.5),
    "jvm_peak_gib": ("<=", 4.0),
    "time_at_5x": ("<=", 6.0),
    "incremental_1pct": ("<=", 0.10),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        size: of the first input; the second is five times as large.
        timed_runs: builds of each engine after the warm-up.
        nights: updates; the first is a warm-up.
    """

    size: Size
    timed_runs: int
    nights: int


FULL = Plan(Size(200_000, 5_000_000), timed_runs=3, nights=4)
SMOKE = Plan(Size(2_000, 25_000), timed_runs=1, nights=2)


def configuration(root: Path) -> dict[str, Any]:
    """A configuration with the benchmark's fields; its `select` statements are never run."""
    fields = {name: {"role": "what", "kind": "categorical"} for name in CATEGORICAL}
    fields |= {name: {"role": "how", "kind": "numeric"} for name in NUMERIC}
    return {
        "name": "sequences",
        "root": str(root),
        "as_of": _AS_OF,
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
    """This project's code in one Spark session."""

    def __init__(self, root: Path) -> None:
        from lam_spark.runtime.session import spark_session

        root.mkdir(parents=True, exist_ok=True)
        conf = root / "conf.yaml"
        conf.write_text(yaml.safe_dump(configuration(root), sort_keys=False))
        self.config = load(conf, root)
        self.spark = spark_session(self.config.spark)
        self.spark.range(1).count()

    def context(self, workspace: Path, as_of: str = _AS_OF, rebuild: bool = False) -> RunContext:
        """Run context over a workspace."""
        sequences = self.config.sequences.model_copy(update={"rebuild": rebuild})
        changes = {
            "root": str(workspace),
            "as_of": dt.date.fromisoformat(as_of),
            "sequences": sequences,
        }
        ctx: RunContext = open_context(self.config.model_copy(update=changes), self.spark)
        return ctx

    def events(self, folder: Path) -> Any:
        """The four channels as one frame."""
        return self.spark.read.parquet(*(str(path) for path in sorted(folder.glob("channel_*.parquet"))))

    def write_vocabulary(self, folder: Path, workspace: Path) -> None:
        """Build the vocabulary table, and copy it to Parquet for the baselines."""
        from lam_spark.sequences.vocabulary import count_values, extend_vocabulary

        ctx = self.context(workspace)
        tables, config = ctx.tables, ctx.config
        tables.overwrite(count_values(self.events(folder), config.categorical), "value_counts")
        extend_vocabulary(tables, config.fields, tables.read("value_counts"))
        rows = tables.read("vocabulary").select("field", "value", "token_id").toPandas()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "vocabulary.parquet")

    def build(self, folder: Path, workspace: Path) -> None:
        """From the channels to the written table, as the baselines do."""
        from lam_spark.sequences.build import BUILD_SETTINGS, Assembler
        from lam_spark.sequences.entries import SequenceSpec
        from lam_spark.storage.session_settings import session_settings

        ctx = self.context(workspace)
        allowed = self.spark.read.parquet(str(folder / "allowed.parquet"))
        with ctx.cache.scope(), session_settings(self.spark, BUILD_SETTINGS):
            vocabulary = ctx.cache(ctx.tables.read("vocabulary"))
            assembler = Assembler(ctx.cache, SequenceSpec.of(ctx.config), vocabulary)
            events = self.events(folder)
            count = events.count()
            ctx.tables.overwrite(assembler.rows(events, allowed, count, longest=count), "sequences")

    def result_files(self, workspace: Path) -> list[str]:
        """Files of the written table."""
        files = self.context(workspace).tables.read("sequences").inputFiles()
        return [path.removeprefix("file://") for path in files]

    def jvm_peak_gib(self) -> float:
        """Peak resident memory of the JVM so far, heap and everything else."""
        for process in psutil.Process().children(recursive=True):
            if "java" in process.name():
                return high_water_gib(str(process.pid))
        raise RuntimeError("the session has no Java process")


def high_water_gib(pid: str) -> float:
    """The kernel's high-water mark of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak) / 2**20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    started = time.monotonic()
    result = work()
    return time.monotonic() - started, result


def serve_spark(pipe: Connection, folder: Path, root: Path, plan: Plan, builds: int) -> None:
    """Process of our engine: sends the figures of each request."""
    ours = Ours(root)
    ours.write_vocabulary(folder, root)
    pipe.send(None)  # ready: the vocabulary of the baselines is written
    for request in iter(pipe.recv, "stop"):
        if request == "build":
            pipe.send(timed(lambda: ours.build(folder, root))[0])
        elif request == "digest":
            pipe.send(digest_of(ours.result_files(root)))
        elif request == "nights":
            pipe.send(nights(ours, folder, root / "nightly", plan, builds))
        elif request == "memory":
            pipe.send(ours.jvm_peak_gib())
    ours.spark.stop()


def serve_baseline(pipe: Connection, name: str, folder: Path, root: Path) -> None:
    """Process of a baseline: sends the figures of each request."""
    root.mkdir(parents=True)
    target = root / "sequences.parquet"
    build = {"duckdb": duckdb_build, "polars": polars_build}[name](folder)
    for request in iter(pipe.recv, "stop"):
        if request == "build":
            pipe.send(timed(lambda: build(target))[0])
        elif request == "digest":
            pipe.send(digest_of([str(target)]))
        elif request == "memory":
            pipe.send(high_water_gib("self"))


class Engine:
    """An engine in a process of its own, controlled through a pipe."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments))
        self._process.start()
        theirs.close()

    def request(self, name: str) -> Any:
        """Send a request and wait for its result."""
        self._pipe.send(name)
        return self.receive()

    def receive(self) -> Any:
        """Wait for a result."""
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self._process.join()


def digest_of(files: list[str]) -> str:
    """sha256 of a result: customers in the order of their keys, lengths, and every event in order."""
    columns = ["customer_key", "events_seen", "event_time", *CATEGORICAL, "amount"]
    rows = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    rows = rows.take(pc.sort_indices(rows["customer_key"]))
    digest = hashlib.sha256("".join(rows["customer_key"].to_pylist()).encode())
    digest.update(rows["events_seen"].cast(pa.int64()).to_numpy().tobytes())
    digest.update(pc.list_value_length(rows["event_time"]).cast(pa.int64()).to_numpy().tobytes())
    for name in columns[2:]:
        flat = pc.list_flatten(rows[name])
        kind = pa.float32() if name == "amount" else pa.int64()
        digest.update(flat.cast(kind).to_numpy().tobytes())
    return digest.hexdigest()


def write_consent(ours: Ours, ctx: RunContext, folder: Path) -> None:
    """Append the statements of the customers who opted in."""
    from pyspark.sql import functions as F

    stated_at = F.lit("2023-01-01").cast("timestamp")
    statements = ours.spark.read.parquet(str(folder / "allowed.parquet")).select(
        "customer_key",
        F.explode(F.array(*map(F.lit, _PURPOSES))).alias("purpose"),
        F.lit("opt_in").alias("state"),
        stated_at.alias("effective_at"),
        stated_at.alias("recorded_at"),
        F.lit("benchmark").alias("source"),
        stated_at.alias("ingested_at"),
    )
    ctx.tables.append(statements, "consent")


def nights(ours: Ours, folder: Path, workspace: Path, plan: Plan, builds: int) -> dict[str, float]:
    """Seconds of the stage: `whole` (median of the rebuilds) and `night` (new events of 1 % of the customers)."""
    from pyspark.sql import functions as F

    from lam_spark.sequences.stage import build_sequences

    ctx = ours.context(workspace)
    lineage = {"source": F.lit("benchmark"), "ingested_at": F.current_timestamp()}
    ctx.tables.append(ours.events(folder).withColumns(lineage), "events")
    write_consent(ours, ctx, folder)
    whole = [timed(lambda: build_sequences(ours.context(workspace, rebuild=True)))[0] for _ in range(builds)]
    customers = plan.size.customers
    keys = customer_keys(customers, 4)
    updates = []
    for night in range(plan.nights):
        rng = np.random.default_rng([5, night])
        chosen = rng.choice(customers, customers // 100, replace=False)
        owners = np.repeat(chosen, rng.integers(1, 10, len(chosen)))
        day = FIRST_DAY.astype(np.int64) + (DAYS + night) * MICROS_PER_DAY
        is_late = rng.random(len(owners)) < 0.1
        delay = np.where(is_late, rng.integers(0, 60, len(owners)), 0) * MICROS_PER_DAY
        times = day + rng.integers(0, MICROS_PER_DAY, len(owners)) - delay
        path = folder / f"night_{night}.parquet"
        pq.write_table(draw_events(rng, keys, owners, times), path)
        ctx.tables.append(ours.spark.read.parquet(str(path)).withColumns(lineage), "events")
        as_of = str(np.datetime64("2025-01-02") + night)
        seconds, result = timed(lambda as_of=as_of: build_sequences(ours.context(workspace, as_of)))
        updates.append(seconds)
        print(f"  night {night}: {seconds:.1f} s, {result.mode}, {result.counts}", flush=True)
        assert result.mode == "update"
    # The first measurement is a warm-up where there are several.
    return {"whole": statistics.median(whole[1:] or whole), "night": statistics.median(updates[1:])}


def compare(folder: Path, root: Path, plan: Plan) -> dict[str, float]:
    """The three engines in turns, then our nights."""
    engines = {"ours": Engine(serve_spark, folder, root / "ours", plan, plan.timed_runs)}
    engines["ours"].receive()
    engines |= {name: Engine(serve_baseline, name, folder, root / name) for name in ("duckdb", "polars")}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(1 + plan.timed_runs):
        for name, engine in engines.items():
            seconds[name].append(engine.request("build"))
            print(f"  {name:<8} {seconds[name][-1]:6.1f} s", flush=True)
    digests = {name: engine.request("digest") for name, engine in engines.items()}
    if len(set(digests.values())) != 1:
        sys.exit(f"expected equal results, got {digests}")
    figures = {f"{name}_seconds": statistics.median(times[1:]) for name, times in seconds.items()}
    figures |= {f"{name}_peak_gib": engines[name].request("memory") for name in ("duckdb", "polars")}
    for name in ("duckdb", "polars"):
        engines[name].stop()
    nightly = engines["ours"].request("nights")
    figures |= {"whole_stage_seconds": nightly["whole"], "night_seconds": nightly["night"]}
    figures["jvm_peak_gib"] = engines["ours"].request("memory")
    engines["ours"].stop()
    return figures


def measure_large(folder: Path, root: Path, plan: Plan) -> dict[str, float]:
    """Our engine alone, at the larger size."""
    engine = Engine(serve_spark, folder, root, plan, 1)
    engine.receive()
    seconds = engine.request("build")
    print(f"  ours     {seconds:6.1f} s", flush=True)
    nightly = engine.request("nights")
    figures = {"seconds": seconds, "jvm_peak_gib": engine.request("memory"), **nightly}
    engine.stop()
    return figures


def main() -> None:
    plan = SMOKE if smoke_requested(__doc__) else FULL
    large = Plan(Size(5 * plan.size.customers, 5 * plan.size.events), plan.timed_runs, plan.nights)
    with tempfile.TemporaryDirectory(prefix="sequences-") as name:
        root = Path(name)
        print(f"{plan.size.total:,} events of {plan.size.customers:,} customers", flush=True)
        write_input(root / "input", plan.size)
        figures = compare(root / "input", root / "base", plan)
        shutil.rmtree(root / "input")
        shutil.rmtree(root / "base")
        print(f"{large.size.total:,} events of {large.size.customers:,} customers", flush=True)
        write_input(root / "input", large.size)
        five = measure_large(root / "input", root / "large", large)
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
    report("sequences", {key: float(value) for key, value in figures.items()}, TARGETS)


if __name__ == "__main__":
    main()
