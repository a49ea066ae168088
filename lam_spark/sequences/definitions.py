"""Checks that a table was made for the present configuration; an error names the keys that differ and the first stage
to run again.

Cost: one commit of the transaction log per table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lam_spark.config import Config
from lam_spark.config.definition import (
    Definition,
    differences,
    examples_definition,
    sequences_definition,
    snapshot_definition,
)
from lam_spark.errors import DataQualityError
from lam_spark.events.schema import fields_not_in
from lam_spark.storage.tables.registry import TABLES
from lam_spark.storage.tables.store import Tables

# Key of the commit metadata of the tables below.
DEFINITION = "definition"
# In the order in which they are made.
_TABLES: Mapping[str, Callable[[Config], Definition]] = {
    "sequences": sequences_definition,
    "examples": examples_definition,
    "training_blocks": snapshot_definition,
}


def require_definition(tables: Tables, config: Config, name: str) -> None:
    """Check that `sequences`, `examples` or `training_blocks` was made for the present configuration.

    Raises:
        DataQualityError: It was made for another one, or does not record for which.
    """
    difference = _difference(tables, config, name)
    if difference:
        raise DataQualityError(f"the table {name} {difference}: {run_again(tables, config, before=name)}")


def run_again(tables: Tables, config: Config, before: str | None = None, otherwise: str = "") -> str:
    """What to do about something that was made for another configuration: run the first stage that is not up to date.

    Args:
        tables: Tables of the workspace.
        config: The present configuration.
        before: Table that is not up to date; only the ones made before it are looked at. None: all are.
        otherwise: Stage to run if all tables are up to date; with `before`, the one that writes it.
    """
    stage = otherwise or TABLES[str(before)].writer
    for name in _TABLES:
        if name == before:
            break
        if not tables.exists(name) or _difference(tables, config, name):
            stage = TABLES[name].writer
            break
    hint = ""
    if missing_fields(tables, config):
        stage, hint = "ingest", " (with --set ingest.rebuild=true)"
    return f"run the stage '{stage}'{hint} again, then those after it"


def require_fields(tables: Tables, config: Config) -> None:
    """Check that the events have a column for each declared field.

    Raises:
        DataQualityError: A field was added, or has another kind, since the events were ingested.
    """
    missing = missing_fields(tables, config)
    if missing:
        raise DataQualityError(
            f"the table events was made for another configuration ({missing}): run the stage 'ingest' (with --set "
            "ingest.rebuild=true) again, then those after it"
        )


def missing_fields(tables: Tables, config: Config) -> str:
    """Declared fields that the table `events` does not have, as text; empty if it has all, or does not exist."""
    if not tables.exists("events"):
        return ""
    missing = fields_not_in(tables.read("events").schema, config.fields)
    return ", ".join(f"fields.{name} (added, or of another kind)" for name in missing)


def _difference(tables: Tables, config: Config, name: str) -> str:
    """How the definition of a table that exists differs from the present one; empty if it does not."""
    metadata: dict[str, Any] = tables.commit_metadata(name) or {}
    recorded = metadata.get(DEFINITION)
    if recorded is None:
        return "does not record what it was made for, or was made by another version of lam_spark"
    keys = differences(recorded, _TABLES[name](config))
    return f"was made for another configuration, which differs in {keys}" if keys else ""
