"""Checks that `examples` match a run: configuration, dates, vocabulary, sequences, customers of their events."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from lam_spark.config import Config, Periods
from lam_spark.consent.guards import require_assigned
from lam_spark.errors import DataQualityError
from lam_spark.sequences.definitions import require_definition
from lam_spark.sequences.freshness import require_sequences
from lam_spark.sequences.vocabulary import is_numbered_by
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import Tables

# Keys of the commit metadata of `examples` and `training_blocks`, in addition to `definitions.DEFINITION`: the instant
# `as_of` (ISO 8601), the dates of the periods (`Periods.to_metadata`), and what token ids mean (`numbering`).
AS_OF, PERIODS, EVENTS_VERSION, VOCABULARY = "as_of", "periods", "events_version", "vocabulary"


@dataclass(frozen=True)
class CheckedExamples:
    """What the examples of a workspace were made from.

    Attributes:
        periods: Dates of the periods, resolved when the examples were made.
        events_version: The lower of the versions of `events` that sequences and examples were built from.
        sizes: Ids in use per categorical field when they were made; values that the vocabulary gained later are
            unknown to everything that is made from these examples, because they may come from the test period.
    """

    periods: Periods
    events_version: int
    sizes: dict[str, int]


def require_examples(tables: Tables, cache: FrameCache, config: Config, at: dt.datetime) -> CheckedExamples:
    """Check `examples` against the run's configuration, and `sequences` against the examples.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: The present configuration: labels may use events before its `as_of`.
        at: Instant at which consent statements must be effective.

    Raises:
        ConfigError: One of the tables does not exist.
        ConsentError: See `require_assigned`.
        DataQualityError: The examples are of another configuration, a later `as_of` or another vocabulary, or do not
            record it; or the sequences lack events before the examples.
    """
    for name in ("sequences", "examples"):
        tables.version(name)  # of missing tables, the message names the stage that comes first
    require_definition(tables, config, "examples")
    metadata = tables.commit_metadata("examples") or {}
    remedy = "run the stage 'examples' with the same --as-of"
    if not is_numbered_by(tables.read("vocabulary"), metadata.get(VOCABULARY)):
        raise DataQualityError(
            f"the examples hold the ids of another vocabulary than the present one: {remedy}"
        )
    as_of, examples_as_of = config.instant(config.as_of), dt.datetime.fromisoformat(metadata[AS_OF])
    if examples_as_of > as_of:
        raise DataQualityError(
            f"the examples were made for an as_of of {examples_as_of:%Y-%m-%d %H:%M} (UTC), so their labels use events "
            f"after as_of {as_of:%Y-%m-%d %H:%M} (UTC): {remedy}"
        )
    purpose = config.consent.training_purpose
    sequences_version = require_sequences(tables, cache, config, examples_as_of, purpose, at)
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
    return CheckedExamples(
        periods=Periods.from_metadata(metadata[PERIODS]),
        events_version=min(sequences_version, events_version),
        sizes=dict(metadata[VOCABULARY]["sizes"]),
    )
