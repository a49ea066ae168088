"""The published list of a day: rows of `contact_list`, a CSV file, and a manifest that says whether it may be used.

A list is withdrawn before a new one is made: if the new one fails, for example because the ledger cannot be read, no
list remains that still holds customers who opted out. Lists of other days are not touched.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from lam_spark.storage.files import write_atomically
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import sql_literal

TABLE = "contact_list"
# Status in the manifest.
VALID, WITHDRAWN = "valid", "withdrawn"
# Raise it when a key is added, removed or changes its meaning.
_MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class ListFiles:
    """The files of the list of one `as_of`: the CSV file and its manifest (JSON)."""

    csv: Path
    manifest: Path

    @classmethod
    def of(cls, folder: Path, day: dt.date) -> ListFiles:
        """The files of a day in the folder `delivery` of a workspace."""
        return cls(folder / f"{TABLE}_{day}.csv", folder / f"{TABLE}_{day}.json")


def withdraw(tables: Tables, files: ListFiles, as_of: dt.datetime, run_id: str, at: dt.datetime) -> bool:
    """Withdraw the list of an `as_of`: its manifest says so, its file and its rows are removed.

    Cost: one query over the rows of the day, if there are any one small commit.

    Args:
        tables: Tables of the workspace.
        files: Files of the list.
        as_of: The `as_of` of the list.
        run_id: The run that withdraws it.
        at: The present instant (UTC).

    Returns:
        Whether there was a list.
    """
    is_published = files.csv.exists() or files.manifest.exists()
    if is_published:
        write_manifest(files, WITHDRAWN, as_of, run_id, {"withdrawn_at": at.isoformat()})
        files.csv.unlink(missing_ok=True)
    table = tables.read_if_exists(TABLE)
    of_day = sql_literal(as_of)
    if table is not None and not table.where(F.col("as_of") == F.expr(of_day)).isEmpty():
        tables.overwrite(table.limit(0), TABLE, where=f"as_of = {of_day}")
        is_published = True
    tables.read_versions.pop(TABLE, None)  # only the withdrawn rows were read
    return is_published


def write_manifest(
    files: ListFiles, status: str, as_of: dt.datetime, run_id: str, facts: Mapping[str, Any]
) -> None:
    """Write or replace the manifest of a list, atomically.

    Args:
        files: Files of the list.
        status: `VALID` or `WITHDRAWN`.
        as_of: The `as_of` of the list.
        run_id: The run that publishes or withdraws it.
        facts: Further entries.
    """
    content = {
        "format": _MANIFEST_FORMAT,
        "status": status,
        "file": files.csv.name,
        "as_of": as_of.isoformat(),
        "run_id": run_id,
        **facts,
    }
    write_atomically(files.manifest, json.dumps(content, indent=1) + "\n")
