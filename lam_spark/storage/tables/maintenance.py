"""Maintenance of Delta tables: joining small files."""

from __future__ import annotations

from delta.tables import DeltaTable

from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.store import Tables

# Every night leaves small files in every table that it writes, and each read opens them all.
_COMMITS_BETWEEN_COMPACTIONS = 32
_COMPACTION = {
    # Only files below the first size are joined, to files of about the second (bytes).
    "spark.databricks.delta.optimize.minFileSize": str(64 * 2**20),
    "spark.databricks.delta.optimize.maxFileSize": str(256 * 2**20),
}


def compact(tables: Tables, name: str) -> int:
    """Join a table's small files if that was not done in the last 32 commits.

    Rows, commit metadata and the change feed stay as they are; rows behind deletion vectors leave the joined files.

    Returns:
        Number of files replaced; 0 where it is too early or no file is small.
    """
    log = tables.log(name)
    versions = set(log.versions())
    newest = max(versions)
    # Delta cleans old commits from the log of a rarely written table; a missing one counts as no compaction.
    recent = range(newest, newest - _COMMITS_BETWEEN_COMPACTIONS, -1)
    if recent[-1] < 0 or any(log.leaves_no_small_files(version) for version in recent if version in versions):
        return 0
    optimize = DeltaTable.forPath(tables.spark, tables.path(name)).optimize()
    with session_settings(tables.spark, _COMPACTION):
        version = tables.committed_version(optimize.executeCompaction, name)
    return 0 if version is None else log.metrics(version)["numRemovedFiles"]
