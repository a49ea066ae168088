"""The telecom world through `ingest`, held against its truth file to the row, at a size and at five times it.

    python -m benchmarks.telco [--smoke]

20,000 and 100,000 customers with 5 % dirty rows (--smoke: 500 and 2,500). For each of the twelve feeds: raw rows,
events, links, duplicates, unresolved and quarantined rows, the latter by reason. Any difference counts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, lam_spark, report, smoke_requested, stage_records

_CONF = REPOSITORY / "conf/telco.yaml"
_COUNTED = ("rows_in", "events", "links", "duplicates", "quarantined", "unresolved")


def published(root: Path) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """What the tables say: source -> counts, source -> reason -> quarantined rows."""
    from lam_spark.config.load import load_config
    from lam_spark.runtime.session import spark_session
    from lam_spark.storage.tables import Tables

    config = load_config(_CONF, overrides=[f"root={root}"])
    spark = spark_session(config.spark)
    tables = Tables(spark, config.workspace / "tables")
    counts = {
        row["source"]: {name: row[name] for name in _COUNTED}
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
    """Every count that is not what the truth says."""
    found = [f"{feed}: nothing was ingested" for feed in truth if feed not in counts]
    for feed, made in counts.items():
        told = truth[feed]
        found += [
            f"{feed}: {made[name]:,} {name}, the truth says {told[name]:,}"
            for name in _COUNTED
            if name in told and made[name] != told[name]
        ]
        if "refused" in told and told["refused"] != reasons.get(feed, {}):
            found.append(f"{feed}: refused {reasons.get(feed, {})}, the truth says {told['refused']}")
    return found


def measure(root: Path, customers: int) -> dict[str, float]:
    """Draw a world, ingest it, compare."""
    arguments = f"fetch.arguments.customers={customers}"
    drawn = lam_spark("fetch", _CONF, root, arguments)
    summary = lam_spark("ingest", _CONF, root, arguments)
    made = {**stage_records(root, drawn["run_id"]), **stage_records(root, summary["run_id"])}
    truth = json.loads((root / "truth" / "counts.json").read_text())
    del truth["consent_statements"]  # another stage reads them
    wrong = differences(truth, *published(root))
    for line in wrong:
        print(f"  DIFFERENT  {line}")
    rows = made["ingest"]["counts"]["rows_in"]
    print(f"  {customers:,} customers, {rows:,} raw rows: {made['ingest']['says']}", flush=True)
    return {
        "rows": rows,
        "fetch_seconds": made["fetch"]["seconds"],
        "seconds": made["ingest"]["seconds"],
        "rows_per_second": rows / made["ingest"]["seconds"],
        "peak_gib": made["ingest"]["peak_memory_gib"],
        "differences": len(wrong),
    }


def main() -> None:
    sizes = (500, 2_500) if smoke_requested(__doc__) else (20_000, 100_000)
    figures: dict[str, float] = {}
    for customers, suffix in zip(sizes, ("", "_at_5x"), strict=True):
        with tempfile.TemporaryDirectory(prefix="telco-") as folder:
            found = measure(Path(folder) / "world", customers)
        figures |= {f"{name}{suffix}": value for name, value in found.items()}
    figures["time_at_5x"] = figures["seconds_at_5x"] / figures["seconds"]
    targets = {"differences": ("<=", 0.0), "differences_at_5x": ("<=", 0.0), "time_at_5x": ("<=", 6.0)}
    report("telco", figures, targets)


if __name__ == "__main__":
    main()
