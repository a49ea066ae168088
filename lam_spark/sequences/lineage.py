"""What a version of `sequences` was made of, kept in its commit: from there the next run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lam_spark.config import Config
from lam_spark.runtime.context import Run
from lam_spark.sequences.time_range import micros

# Raise it when the same events would give other rows.
_ROW_VERSION = 3
# Delta keeps removed files for seven days: what is older may not be read again.
_MOST_DAYS = 6


@dataclass(frozen=True)
class Built:
    """What the rows of `sequences` are a function of.

    Attributes:
        digest: of the part of the configuration that matters here.
        events: version of the table.
        consent: version of the ledger; `asked_at` is when its statements had to be in effect.
        value_counts: version of the table that counts the values of just these events.
        as_of: the events before it were seen.
        cut: the vocabulary knows events before it.
        first_event, last_event: bounds of all events.
        top_ids: highest token id of each field.

    Instants are microseconds since 1970 (UTC).
    """

    digest: str
    events: int
    consent: int
    asked_at: int
    value_counts: int
    as_of: int
    cut: int
    first_event: int
    last_event: int
    top_ids: dict[str, int]

    def note(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def digest(config: Config) -> str:
    """sha256 of all in the configuration that the rows and the vocabulary follow from, but its dates."""
    fields = {
        name: [spec.kind, spec.min_count, spec.max_values]
        for name, spec in config.fields.items()
        if spec.kind != "reference"
    }
    purposes = [config.consent.training_purpose, config.consent.contact_purpose]
    parts = [
        _ROW_VERSION,
        fields,
        config.sequences.max_events,
        config.time_zone,
        config.model.count_by,
        purposes,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def last_built(run: Run) -> tuple[Built | None, str]:
    """What the table was made of; or None, and why it has to be made from all events."""
    tables = run.tables
    if run.config.sequences.rebuild:
        return None, "sequences.rebuild is set"
    if not tables.exists("sequences"):
        return None, "there is no table yet"
    note = tables.note_of("sequences")
    if note is None:
        return None, "the table's last change does not say what it was made of"
    if note.get("digest") != digest(run.config):
        return None, "fields, limits, purposes or time zone have changed"
    built = Built(**note)
    if micros(run.started_at) - built.asked_at > _MOST_DAYS * 86_400_000_000:
        return None, f"the table is more than {_MOST_DAYS} days old"
    if not tables.told_since("events", built.events):
        return None, "the events were replaced, or their change feed has a gap"
    if built.consent > tables.version("consent"):
        return None, "the consent ledger was replaced"
    return built, ""
