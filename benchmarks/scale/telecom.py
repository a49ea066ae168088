"""Ingestion of the synthetic telecom data set, compared with its ground truth at one size and at five times that size.

    python -m benchmarks.scale.telecom [--smoke]

20,000 and 100,000 customers with 5 % dirty rows (`--smoke`: 500 and 2,500). Compares, for each of the twelve feeds, the
raw rows, events, links, duplicates, unresolved rows, and quarantined rows per reason. Every difference counts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import TELECOM_CONF, lam_spark, report, smoke_requested, stage_records

_COUNTS = ("rows_in", "events", "links", "duplicates", "quarantined", "unresolved")


def ingested(root: Path) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Read the published tables: source -> counts, and source -> reason -> quarantined rows."""
    from lam_spark.config.load import load_config
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables.store import Tables

    config = load_config(TELECOM_CONF, overrides=[f"root={root}"])
    spark = spark_session(config.spark)
    tables = Tables(spark, config.workspace / "tables")
    counts = {
        row["source"]: {name: row[name] for name in _COUNTS}
        for row in tables.read("reconciliation").toLocalIterator()
    }
    reasons: dict[str, dict[str, int]] = {}
    for row in tables.read("quarantine").groupBy("source", "reason").count().toLocalIterator():
        reasons.setdefault(row["source"], {})[row["reason"]] = row["count"]
    spark.stop()
    return counts, reasons


def differences(
    truth: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    reasons: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """Describe every count that differs from the ground truth."""
    lines = [f"{feed}: nothing was ingested" for feed in truth if feed not in counts]
    for feed, feed_counts in counts.items():
        expected = truth[feed]
        lines += [
            f"{feed}: {name} is {feed_counts[name]:,}, expected {expected[name]:,}"
            for name in _COUNTS
            if name in expected and feed_counts[name] != expected[name]
        ]
        expected_reasons = expected.get("quarantine_reasons", {})
        if "quarantine_reasons" in expected and expected_reasons != reasons.get(feed, {}):
            lines.append(f"{feed}: quarantined {reasons.get(feed, {})}, expected {expected_reasons}")
    return lines


def measure(root: Path, customers: int) -> dict[str, float]:
    """Generate a data set, ingest it and compare."""
    arguments = f"fetch.arguments.customers={customers}"
    fetch = lam_spark("fetch", TELECOM_CONF, root, arguments)
    ingest = lam_spark("ingest", TELECOM_CONF, root, arguments)
    records = {**stage_records(root, fetch["run_id"]), **stage_records(root, ingest["run_id"])}
    truth = json.loads((root / "truth" / "counts.json").read_text())
    del truth["consent_statements"]  # read by the stage consent
    lines = differences(truth, *ingested(root))
    for line in lines:
        print(f"  DIFFERENT  {line}")
    rows = records["ingest"]["counts"]["rows_in"]
    print(f"  {customers:,} customers, {rows:,} raw rows: {records['ingest']['message']}", flush=True)
    return {
        "rows": rows,
        "fetch_seconds": records["fetch"]["seconds"],
        "seconds": records["ingest"]["seconds"],
        "rows_per_second": rows / records["ingest"]["seconds"],
        "peak_gib": records["ingest"]["peak_memory_gib"],
        "differences": len(lines),
    }


def main() -> None:
    sizes = (500, 2_500) if smoke_requested(__doc__) else (20_000, 100_000)
    figures: dict[str, float] = {}
    for customers, suffix in zip(sizes, ("", "_at_5x"), strict=True):
        with tempfile.TemporaryDirectory(prefix="telecom-") as folder:
            measured = measure(Path(folder) / "data", customers)
        figures |= {f"{name}{suffix}": value for name, value in measured.items()}
    figures["time_at_5x"] = figures["seconds_at_5x"] / figures["seconds"]
    targets = {"differences": ("<=", 0.0), "differences_at_5x": ("<=", 0.0), "time_at_5x": ("<=", 6.0)}
    report("telecom", figures, targets)


if __name__ == "__main__":
    main()
