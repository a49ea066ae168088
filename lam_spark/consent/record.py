"""What a refresh of the ledger leaves in the commit metadata of the table `consent`."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from typing import Any, Self

from lam_spark.storage.tables.store import Tables

_FORMAT = 1


@dataclass(frozen=True)
class RefreshRecord:
    """A refresh of the ledger from its source; recorded even if no statement was new.

    Attributes:
        refreshed_at: Instant at which the source had been read (ISO 8601).
        fingerprint: Input of the ledger -> its fingerprint (`sources.fingerprint`); "configuration" -> digest of what
            else decides which statements the source gives.
        statements: Statements of the source.
        events_version: Version of `events` that the ids were compared with; None if there was none.
        unmatched_opt_outs: Customers who opted out of a purpose and have no event.
        ids_in_other_case: Ids without events that differ only in case from an id with events.
    """

    refreshed_at: str
    fingerprint: dict[str, str | None]
    statements: int
    events_version: int | None
    unmatched_opt_outs: int
    ids_in_other_case: int

    @property
    def instant(self) -> dt.datetime:
        """`refreshed_at` as an instant."""
        return dt.datetime.fromisoformat(self.refreshed_at)

    def is_of(self, fingerprint: dict[str, str | None]) -> bool:
        """Whether the source still is as it was read; False where a change cannot be noticed."""
        return self.fingerprint == fingerprint and None not in fingerprint.values()

    def to_metadata(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any] | None) -> Self | None:
        """Inverse of `to_metadata`; None if another program or version wrote the table last."""
        values = dict(metadata or {})
        if values.pop("format", None) != _FORMAT or set(values) != {f.name for f in dataclasses.fields(cls)}:
            return None
        return cls(**values)


def last_refresh(tables: Tables) -> RefreshRecord | None:
    """The last refresh; None if the table does not exist or does not record it."""
    if not tables.exists("consent"):
        return None
    return RefreshRecord.from_metadata(tables.commit_metadata("consent"))
