"""Publishing several tables or none: a marker file names the versions to roll back to.

Delta commits one table at a time. A reader in between may see some tables new and some old.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark.sql import DataFrame

from lam_spark.storage.files import write_atomically
from lam_spark.storage.tables.store import Tables


@contextlib.contextmanager
def transaction(tables: Tables, *names: str) -> Iterator[None]:
    """Publish several tables or none: if anything fails inside, all are rolled back.

    The versions to go back to are written to a marker first, so that the next run can roll back the
    publication of a run that was killed (`roll_back`).
    """
    versions = {name: tables.version(name) if tables.exists(name) else None for name in names}
    marker = _marker(tables)
    write_atomically(marker, json.dumps(versions))
    try:
        yield
    except BaseException:
        roll_back(tables)
        raise
    marker.unlink()


def roll_back(tables: Tables) -> list[str]:
    """Roll back what an unfinished publication wrote; returns the tables that had changed."""
    marker = _marker(tables)
    if not marker.exists():
        return []
    changed = []
    for name, version in json.loads(marker.read_text(encoding="utf-8")).items():
        if version is None:
            if Path(tables.path(name)).exists():
                shutil.rmtree(tables.path(name))
                changed.append(name)
        elif tables.version(name) > version:
            DeltaTable.forPath(tables.spark, tables.path(name)).restoreToVersion(version)
            changed.append(name)
        tables.written_versions.pop(name, None)
    marker.unlink()
    return changed


def upsert(
    tables: Tables,
    frame: DataFrame,
    name: str,
    key: str,
    metadata: Mapping[str, Any],
    deleted_keys: DataFrame | None = None,
) -> dict[str, int]:
    """Insert or replace the rows of `frame` and delete those of `deleted_keys`: all or nothing.

    Args:
        tables: Tables of the workspace.
        frame: All columns of the table; one row per key.
        name: Name of the table.
        key: Column that identifies a row.
        metadata: Stored with the last commit, even where no row changes.
        deleted_keys: Keys whose rows are deleted, none of them in `frame`; None: no deletion.

    Returns:
        Numbers of rows `inserted`, `replaced` and `deleted`.
    """
    if deleted_keys is None:
        return {**tables.merge(frame, name, key, metadata), "deleted": 0}
    with transaction(tables, name):
        # A commit of its own: as a clause of the merge it would carry all columns of all rows along.
        deletion = tables.update(deleted_keys, name, key, delete_where="true")
        merged = tables.merge(frame, name, key, metadata)
        return {**merged, "deleted": deletion.get("numTargetRowsDeleted", 0)}


def _marker(tables: Tables) -> Path:
    return tables.folder / "publication.json"
