"""Writes the raw logs of the synthetic telecom operator, and their ground truth in a folder next to them.

raw/FEED/2024-h1-00000.jsonl …    13 feeds in the formats, ids and clocks of 13 systems
truth/counts.json                 counts that `ingest` must report, per feed
truth/parameters.json             all ground-truth parameters and the metrics of the best possible model
truth/customers/, truth/queries/  Parquet, one row per customer or query
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.datasets.telecom.defects import DUPLICATES, QUARANTINED, UNRESOLVED
from lam_spark.datasets.telecom.feeds import CHANNELS, LINKS, STATEMENTS
from lam_spark.datasets.telecom.ground_truth import QUERIES, best_possible, ground_truth
from lam_spark.datasets.telecom.identities import LOOKBACK_DAYS, MAX_CUSTOMERS, MAX_CUSTOMERS_PER_ID
from lam_spark.datasets.telecom.parameters import SyntheticDataSet
from lam_spark.datasets.telecom.parts import write_part
from lam_spark.errors import ConfigError

# Increase this number when the same arguments give other rows than before.
_EDITION = 1
_MIN_CUSTOMERS = 100
_MAX_DIRTY_SHARE = 0.3


def write_raw_files(folder: Path, customers: int, seed: int, dirty_share: float = 0.05) -> dict[str, int]:
    """Generate the data set with the active Spark session, unless it exists.

    Writes `folder` and the folder `truth` next to it. Each part (at most 10,000 customers) is a Spark task that
    writes its own files, so all executors must share the file system of `folder`. The same arguments give the
    same bytes for any partitioning. A task holds one chunk of 500 customers in memory: about 200 MiB, 350 MiB for
    the customer with one million events. Only counts are collected on the driver.

    Args:
        folder: created if missing; replaced if an earlier call failed or had other arguments.
        customers: number of customers, 100 to 10 million.
        seed: seed of all random numbers.
        dirty_share: expected share of dirty rows in each feed, at most 0.3.

    Returns:
        Feed name -> raw rows.

    Raises:
        ConfigError: an argument is out of range, or there is no active Spark session.
    """
    if not _MIN_CUSTOMERS <= customers <= MAX_CUSTOMERS or not 0 <= dirty_share <= _MAX_DIRTY_SHARE:
        raise ConfigError(
            f"expected {_MIN_CUSTOMERS} to {MAX_CUSTOMERS:,} customers and a dirty_share of 0 to "
            f"{_MAX_DIRTY_SHARE}, got {customers:,} and {dirty_share}: change fetch.arguments"
        )
    data_set = SyntheticDataSet(customers, seed, dirty_share)
    stamp = {"edition": _EDITION, "customers": customers, "seed": seed, "dirty_share": dirty_share}
    folder = folder.absolute()  # the working folder of an executor may differ
    manifest, truth = folder / "manifest.json", folder.with_name("truth")
    if manifest.exists() and truth.exists():
        existing = json.loads(manifest.read_text())
        if existing["stamp"] == stamp:
            return dict(existing["rows"])
    spark = SparkSession.getActiveSession()
    if spark is None:
        raise ConfigError(
            "the telecom data set is generated with Spark: expected an active session, found none; "
            "run the stage fetch, or create a session first"
        )
    draft, truth_draft = (path.with_name(path.name + ".draft") for path in (folder, truth))
    for path in (draft, truth_draft):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    counts = write_parts(spark, data_set, draft, truth_draft, tasks=data_set.parts)
    for path in (draft, truth_draft):
        for leftover in path.rglob(".*"):  # drafts of killed task attempts
            leftover.unlink()
    cells = counts.pop(QUERIES)
    _write_json(truth_draft / "counts.json", _expected_counts(counts))
    truths = ground_truth() | {"arguments": stamp, "best_possible": best_possible(cells)}
    truths["identity_rules"] = {"lookback_days": LOOKBACK_DAYS, "max_customers": MAX_CUSTOMERS_PER_ID}
    _write_json(truth_draft / "parameters.json", truths)
    rows = {name: feed_counts["rows_in"] for name, feed_counts in counts.items()}
    _write_json(draft / "manifest.json", {"stamp": stamp, "rows": rows})
    # The folder with the manifest is renamed last, so a call that failed before is repeated.
    for path in (folder, truth):
        shutil.rmtree(path, ignore_errors=True)
    truth_draft.rename(truth)
    draft.rename(folder)
    return rows


def write_parts(
    spark: SparkSession, data_set: SyntheticDataSet, raw: Path, truth: Path, tasks: int
) -> dict[str, dict[str, int]]:
    """Write all parts in the given number of Spark tasks.

    Returns:
        Feed -> count name -> rows; tens of numbers per feed.
    """

    def write(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for part in batch["id"]:
                counts = write_part(data_set, int(part), raw, truth)
                yield pd.DataFrame(
                    [(feed, name, rows) for (feed, name), rows in counts.items()],
                    columns=["feed", "name", "rows"],
                )

    written = spark.range(0, data_set.parts, 1, tasks).mapInPandas(
        write, "feed STRING, name STRING, rows BIGINT"
    )
    totals = written.groupBy("feed", "name").agg(F.sum("rows").alias("rows"))
    counts: dict[str, dict[str, int]] = {}
    for row in totals.orderBy("feed", "name").toLocalIterator():
        counts.setdefault(row["feed"], {})[row["name"]] = row["rows"]
    return counts


def _expected_counts(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Name the counts of each feed as `ingest` does."""
    expected: dict[str, Any] = {}
    for name in (*CHANNELS, *LINKS, STATEMENTS.name):
        feed_counts = counts[name]
        accepted = "events" if name in CHANNELS else "links" if name in LINKS else "statements"
        expected[name] = {"rows_in": feed_counts["rows_in"], accepted: feed_counts["resolved"]}
        expected[name] |= {
            status: feed_counts.get(status, 0) for status in (DUPLICATES, QUARANTINED, UNRESOLVED)
        }
        for group, prefix in (("quarantine_reasons", "reason: "), ("injected_defects", "defect: ")):
            expected[name][group] = {
                key.removeprefix(prefix): rows for key, rows in feed_counts.items() if key.startswith(prefix)
            }
        expected[name]["ambiguous_local_times"] = feed_counts.get("ambiguous_local_times", 0)
    return expected


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
