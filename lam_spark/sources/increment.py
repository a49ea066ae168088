"""The rows of an input that a reader has not ingested yet. A reader is a channel or a link statement."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A unit that is ingested as a whole: a file, a version of a Delta table, or a database up to a watermark.

    Attributes:
        name: Path, version or watermark.
        size: Bytes of a file, rows at a watermark.
        modified: Modification time of a file, microseconds since 1970.
        ingested_at: When it was ingested first, where a rebuild reads it again; None: now.
    """

    name: str
    size: int | None = None
    modified: int | None = None
    ingested_at: dt.datetime | None = None


@dataclass(frozen=True)
class SourceIncrement:
    """New rows of an input for one reader.

    Attributes:
        reader: Channel or link statement.
        input: Name of the input.
        parts: New files; or one part, the Delta version or the watermark to read up to. Empty: nothing new.
        after: Delta version or watermark that was ingested last; None if there is none.
        mapping: Digest of how the reader maps its rows.
        is_first: Whether the reader has never ingested anything.
        has_change_feed: Whether a Delta table's change feed reports all changes after `after`.
        includes_after: Whether the database now has more rows at the watermark `after` than were ingested.
        lookups: Look-up -> version that maps the rows.
    """

    reader: str
    input: str
    parts: tuple[Part, ...]
    after: str | None
    mapping: str
    is_first: bool
    has_change_feed: bool = False
    includes_after: bool = False
    lookups: Mapping[str, int] = field(default_factory=dict)
