"""Publishing several tables or none: a marker file names the versions to roll back to.

Delta commits one table at a time. A reader in between may see some tables new and some old.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from delta.tables import DeltaTable

from lam_spark.storage.files import write_atomically

if TYPE_CHECKING:
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


def _marker(tables: Tables) -> Path:
    return tables.folder / "publication.json"
