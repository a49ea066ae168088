"""Reads a workspace from outside: pseudonyms, the newest files of a table, token ids, local days."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd


def pseudonyms(secret: str, ids: Iterable[object]) -> list[str]:
    """Pseudonyms (`customer_key`) of raw customer ids under a secret."""
    return [
        hmac.new(secret.encode(), f"customer:{raw_id}".encode(), hashlib.sha256).hexdigest()[:32]
        for raw_id in ids
    ]


def newest_files(table: Path) -> list[str]:
    """Parquet files of a table's last commit; all rows of a table that is overwritten."""
    last = max((table / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in last.read_text().splitlines()]
    return [str(table / action["add"]["path"]) for action in actions if "add" in action]


def token_ids(table: Path, field: str) -> dict[str, int]:
    """Value -> token id of a field, from the vocabulary table."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted(table.glob("*.parquet"))])
    own = rows[rows.field == field]
    return dict(zip(own.value, own.token_id.astype(int), strict=True))


def local_day(instants: pd.Series) -> pd.Series:
    """The retailer's local day of UTC instants."""
    return pd.to_datetime(instants, utc=True).dt.tz_convert("America/New_York").dt.date
