"""Inputs of a version of `sequences`, stored with its commit, so that the next run can update it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lam_spark.config import Config
from lam_spark.config.definition import Definition, differences, sequences_definition
from lam_spark.consent.guards import ConsentCheck
from lam_spark.storage.tables.store import Tables

# Raise it when the same events would give other rows, or when a field of `SequencesLineage` changes.
_FORMAT = 2
# Delta's VACUUM may remove files that were replaced seven days ago; older versions may not be readable.
_MAX_AGE = dt.timedelta(days=6)


@dataclass(frozen=True)
class SequencesLineage:
    """What determines the rows of `sequences`. Instants are microseconds since 1970 (UTC).

    Attributes:
        definition: The configuration that rows and vocabulary depend on, dates excepted.
        events_version: Version of `events`.
        consent_check: How the consent ledger was read.
        value_counts_version: Version of `value_counts`, which counts the values of these events.
        as_of: The rows hold events known before it.
        vocabulary_cutoff: The vocabulary holds values of events known before it.
        first_event: First event of the table `events`.
        last_event: Last event of the table `events`.
        top_ids: Highest token id of each field.
    """

    definition: Definition
    events_version: int
    consent_check: ConsentCheck
    value_counts_version: int
    as_of: int
    vocabulary_cutoff: int
    first_event: int
    last_event: int
    top_ids: dict[str, int]

    def to_metadata(self) -> dict[str, Any]:
        """Commit metadata: the format number and plain JSON values."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any] | None) -> Self | None:
        """Inverse of `to_metadata`; None where there is no metadata, or it has another format."""
        if metadata is None or metadata.get("format") != _FORMAT:
            return None
        values = {name: value for name, value in metadata.items() if name != "format"}
        return cls(**values | {"consent_check": ConsentCheck(**values["consent_check"])})


@dataclass(frozen=True)
class RebuildNeeded:
    """The stored rows cannot be updated.

    Attributes:
        reason: Why all rows have to be built from all events.
    """

    reason: str


def last_lineage(tables: Tables, config: Config, at: dt.datetime) -> SequencesLineage | RebuildNeeded:
    """What the stored rows were built from, if they can be updated at the instant `at`."""
    if config.sequences.rebuild:
        return RebuildNeeded("sequences.rebuild is set")
    if not tables.exists("sequences"):
        return RebuildNeeded("there is no table yet")
    metadata = tables.commit_metadata("sequences")
    if metadata is None:
        return RebuildNeeded("the table's last commit does not record what it was built from")
    lineage = SequencesLineage.from_metadata(metadata)
    if lineage is None:
        return RebuildNeeded("the table was built by another version of lam_spark")
    changed = differences(lineage.definition, sequences_definition(config))
    if changed:
        return RebuildNeeded(f"the configuration has changed: {changed}")
    if at - lineage.consent_check.instant > _MAX_AGE:
        return RebuildNeeded(f"the table is more than {_MAX_AGE.days} days old")
    if not tables.has_change_feed_since("events", lineage.events_version):
        return RebuildNeeded("the events were replaced, or their change feed has a gap")
    if lineage.consent_check.version > tables.version("consent"):
        return RebuildNeeded("the consent ledger was replaced")
    return lineage
