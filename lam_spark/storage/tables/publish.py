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
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame

from lam_spark.errors import DataQualityError, first_line
from lam_spark.storage.files import write_atomically
from lam_spark.storage.tables.log import only_deletes
from lam_spark.storage.tables.registry import TABLES
from lam_spark.storage.tables.store import FILES_VACUUMED, Tables


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
    """Roll back what an unfinished publication wrote; returns the tables that had changed.

    What other programs did since stays: maintenance, properties, and deletions, so that nothing erased returns.

    Cost: a RESTORE a table; where rows were deleted since, one pass over the table.

    Raises:
        DataQualityError: Another program wrote rows since, or VACUUM has removed the files of the version before.
    """
    marker = _marker(tables)
    if not marker.exists():
        return []
    changed = []
    for name, version in json.loads(marker.read_text(encoding="utf-8")).items():
        if version is None:
            if Path(tables.path(name)).exists():
                shutil.rmtree(tables.path(name))
                changed.append(name)
        elif tables.version(name) > version and tables.log(name).history(version) != []:
            _go_back(tables, name, version)
            changed.append(name)
        tables.written_versions.pop(name, None)
    marker.unlink()
    return changed


def _go_back(tables: Tables, name: str, version: int) -> None:
    """Bring back the rows of a version, less those that other programs have deleted since."""
    log = tables.log(name)
    foreign = [v for v in log.history(version) or [] if log.is_foreign_write(v)]
    try:
        if foreign:
            _without_deleted(tables, name, version, foreign)
        else:
            properties = _properties(tables, name)
            DeltaTable.forPath(tables.spark, tables.path(name)).restoreToVersion(version)
            _set_properties(tables, name, properties)
    except AnalysisException as error:
        raise _cannot_go_back(tables, name, version, first_line(error)) from error
    except Exception as error:
        if FILES_VACUUMED not in str(error):
            raise
        raise _cannot_go_back(tables, name, version, "VACUUM has removed its files") from error


def _without_deleted(tables: Tables, name: str, version: int, foreign: list[int]) -> None:
    """Write the rows of a version without the rows that commits of other programs deleted, in one commit."""
    log, key = tables.log(name), list(TABLES[name].key)
    writes = [v for v in foreign if not only_deletes(log.commit_info(v))]
    if writes or not key:
        operation = log.commit_info((writes or foreign)[0])["operation"]
        raise _cannot_go_back(tables, name, version, f"{operation} of another program came after it")
    rows = tables.read(name, version)
    for commit in foreign:
        before, after = (tables.read(name, v).select(key) for v in (commit - 1, commit))
        deleted = before.join(after, key, "left_anti")
        rows = rows.join(deleted, key, "left_anti")
    tables.overwrite(rows.select(tables.read(name, version).columns), name, metadata=log.metadata(version))


def _properties(tables: Tables, name: str) -> dict[str, str]:
    detail = DeltaTable.forPath(tables.spark, tables.path(name)).detail().first()
    return dict(detail["properties"]) if detail else {}


def _set_properties(tables: Tables, name: str, properties: Mapping[str, str]) -> None:
    """Set the properties that RESTORE took back."""
    present = _properties(tables, name)
    lost = {key: value for key, value in properties.items() if present.get(key) != value}
    if lost:
        pairs = ", ".join(f"'{key}' = '{value}'" for key, value in sorted(lost.items()))
        tables.spark.sql(f"ALTER TABLE delta.`{tables.path(name)}` SET TBLPROPERTIES ({pairs})")


def _cannot_go_back(tables: Tables, name: str, version: int, reason: str) -> DataQualityError:
    return DataQualityError(
        f"a run died while it published, and the table {name!r} cannot be brought back to version {version}: {reason}. "
        f"Make the tables again from the inputs: delete {_marker(tables)}, then run the stage "
        f"{TABLES[name].writer!r} with --set {TABLES[name].writer}.rebuild=true"
    )


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
