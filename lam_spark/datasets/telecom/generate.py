"""Puts the raw logs of a drawn telecom operator in place, and beside them what is true of it.

raw/FEED/2024-h1-00000.jsonl …    13 feeds, in the formats, ids and clocks of 13 systems
truth/counts.json                 what `ingest` must count, a feed at a time
truth/parameters.json                every parameter, and what the best model can reach
truth/customers/, truth/queries/  Parquet: a row a customer, a row a query
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
from lam_spark.datasets.telecom.identities import LOOKBACK_DAYS, MAX_CUSTOMERS, MOST_CUSTOMERS
from lam_spark.datasets.telecom.parameters import World
from lam_spark.datasets.telecom.parts import write_part
from lam_spark.datasets.telecom.truth import QUERIES, best_possible, ground_truth
from lam_spark.errors import ConfigError

# Raised when the same arguments give other rows than before.
_EDITION = 1
_FEWEST_CUSTOMERS = 100
_MOST_DIRT = 0.3


def place(folder: Path, customers: int, seed: int, dirty_share: float = 0.05) -> dict[str, int]:
    """Draw the world with the active Spark session and write `folder` and `truth` beside it, once.

    Each part of the customers (at most 10,000) is a task that writes its own files, so the folder must be on
    a file system that all executors see. The same arguments give the same bytes however Spark spreads the
    parts. A task holds a chunk of 500 customers at a time: some 200 MiB, 350 MiB for the largest customer with
    a million events. Only counts come to the driver.

    Args:
        folder: created if missing; replaced if an earlier call died or had other arguments.
        customers: 100 to 10 million.
        seed: of everything.
        dirty_share: dirty rows among the rows of each feed, below 0.3.

    Returns:
        Raw rows a feed.

    Raises:
        ConfigError: an argument out of range, or no Spark session.
    """
    if not _FEWEST_CUSTOMERS <= customers <= MOST_CUSTOMERS or not 0 <= dirty_share <= _MOST_DIRT:
        raise ConfigError(
            f"expected {_FEWEST_CUSTOMERS} to {MOST_CUSTOMERS:,} customers and a dirty_share of 0 to "
            f"{_MOST_DIRT}, got {customers:,} and {dirty_share}"
        )
    world = World(customers, seed, dirty_share)
    stamp = {"edition": _EDITION, "customers": customers, "seed": seed, "dirty_share": dirty_share}
    folder = folder.absolute()  # an executor may stand in another folder
    manifest, truth = folder / "manifest.json", folder.with_name("truth")
    if manifest.exists() and truth.exists():
        known = json.loads(manifest.read_text())
        if known["stamp"] == stamp:
            return dict(known["rows"])
    spark = SparkSession.getActiveSession()
    if spark is None:
        raise ConfigError("the telecom world is drawn in Spark: expected an active session, found none")
    draft, truth_draft = (path.with_name(path.name + ".draft") for path in (folder, truth))
    for path in (draft, truth_draft):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    counts = write_parts(spark, world, draft, truth_draft, tasks=world.parts)
    for path in (draft, truth_draft):
        for left in path.rglob(".*"):  # by attempts of a task that were killed
            left.unlink()
    cells = counts.pop(QUERIES)
    _write_json(truth_draft / "counts.json", _told(counts))
    told = ground_truth() | {"world": stamp, "best": best_possible(cells)}
    told["rules"] = {"lookback_days": LOOKBACK_DAYS, "max_customers": MAX_CUSTOMERS}
    _write_json(truth_draft / "parameters.json", told)
    rows = {name: counted["rows_in"] for name, counted in counts.items()}
    _write_json(draft / "manifest.json", {"stamp": stamp, "rows": rows})
    # The manifest comes last: a call that dies before it is done again.
    for path in (folder, truth):
        shutil.rmtree(path, ignore_errors=True)
    truth_draft.rename(truth)
    draft.rename(folder)
    return rows


def write_parts(
    spark: SparkSession, world: World, raw: Path, truth: Path, tasks: int
) -> dict[str, dict[str, int]]:
    """Write all parts in so many tasks; returns feed -> what -> rows (tens of numbers a feed)."""

    def write(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            for part in batch["id"]:
                counts = write_part(world, int(part), raw, truth)
                yield pd.DataFrame(
                    [(feed, what, rows) for (feed, what), rows in counts.items()],
                    columns=["feed", "what", "rows"],
                )

    written = spark.range(0, world.parts, 1, tasks).mapInPandas(
        write, "feed STRING, what STRING, rows BIGINT"
    )
    summed = written.groupBy("feed", "what").agg(F.sum("rows").alias("rows"))
    counts: dict[str, dict[str, int]] = {}
    for row in summed.orderBy("feed", "what").toLocalIterator():
        counts.setdefault(row["feed"], {})[row["what"]] = row["rows"]
    return counts


def _told(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The counts of each feed as `ingest` names them."""
    told: dict[str, Any] = {}
    for name in (*CHANNELS, *LINKS, STATEMENTS.name):
        counted = counts[name]
        good = "events" if name in CHANNELS else "links" if name in LINKS else "statements"
        told[name] = {"rows_in": counted["rows_in"], good: counted["resolved"]}
        told[name] |= {what: counted.get(what, 0) for what in (DUPLICATES, QUARANTINED, UNRESOLVED)}
        for group, start in (("refused", "refused: "), ("dirt", "dirt: ")):
            told[name][group] = {
                what.removeprefix(start): rows for what, rows in counted.items() if what.startswith(start)
            }
        told[name]["hour_shown_twice"] = counted.get("hour_shown_twice", 0)
    return told


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
