"""Checks that `examples` match a run: dates, vocabulary, sequences, and the customers of their events."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from lam_spark.consent.guards import require_assigned
from lam_spark.errors import DataQualityError
from lam_spark.sequences.freshness import require_sequences
from lam_spark.sequences.vocabulary import is_numbered_by
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import Tables

# Keys of the commit metadata of `examples` and `training_blocks`. Dates are in ISO 8601.
AS_OF, PERIODS, EVENTS_VERSION, VOCABULARY = "as_of", "periods", "events_version", "vocabulary"


def require_examples(
    tables: Tables,
    cache: FrameCache,
    periods: Mapping[str, str],
    as_of: dt.datetime,
    purpose: str,
    at: dt.datetime,
) -> int:
    """Check `examples` against the run's dates, and `sequences` against those of the examples.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        periods: Starts of the periods (`Config.split_instants`).
        as_of: Labels may use events before this instant.
        purpose: Purpose that the customers must have agreed to.
        at: Instant at which consent statements must be effective.

    Returns:
        The lower of the versions of `events` that sequences and examples were built from.

    Raises:
        ConfigError: One of the tables does not exist.
        ConsentError: See `require_assigned`.
        DataQualityError: The examples are of other periods, of a later `as_of` or of another vocabulary, or do not
            record it; or the sequences lack events before the examples.
    """
    for name in ("sequences", "examples"):
        tables.version(name)  # of missing tables, the message names the stage that comes first
    metadata = tables.commit_metadata("examples")
    remedy = "run the stage 'examples' with the same --as-of"
    if metadata is None:
        raise DataQualityError(
            f"the last commit of the table examples does not record for which dates they were made: {remedy}"
        )
    if metadata[PERIODS] != periods:
        stored_periods = ", ".join(f"{name} {day}" for name, day in metadata[PERIODS].items())
        raise DataQualityError(
            f"the examples were made for other dates of split ({stored_periods}) than configured: {remedy}"
        )
    if not is_numbered_by(tables.read("vocabulary"), metadata.get(VOCABULARY)):
        raise DataQualityError(
            f"the examples hold the ids of another vocabulary than the present one: {remedy}"
        )
    examples_as_of = dt.datetime.fromisoformat(metadata[AS_OF])
    if examples_as_of > as_of:
        raise DataQualityError(
            f"the examples were made for an as_of of {examples_as_of:%Y-%m-%d %H:%M} (UTC), so their labels use events "
            f"after as_of {as_of:%Y-%m-%d %H:%M} (UTC): {remedy}"
        )
    sequences_version = require_sequences(tables, cache, examples_as_of, purpose, at)
    events_version = int(metadata[EVENTS_VERSION])
    require_assigned(
        tables,
        cache,
        events_version,
        examples_as_of,
        purpose,
        at,
        data_name="the table examples",
        remedy="run the stage 'examples' again",
    )
    return min(sequences_version, events_version)
