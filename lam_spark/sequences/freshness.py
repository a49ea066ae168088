"""Checks that `sequences` contain all events that a stage needs, and that the events have not been reassigned."""

from __future__ import annotations

import datetime as dt

from lam_spark.config import Config
from lam_spark.consent.guards import require_assigned
from lam_spark.errors import DataQualityError
from lam_spark.sequences.definitions import require_definition
from lam_spark.sequences.lineage import SequencesLineage
from lam_spark.storage.dataframes import FrameCache
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import instant


def require_sequences(
    tables: Tables, cache: FrameCache, config: Config, until: dt.datetime, purpose: str, at: dt.datetime
) -> int:
    """Check that `sequences` hold all events known before the instant `until`, and were made for the configuration.

    Later events do no harm: a query sees only the events known before it.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: The present configuration.
        until: All events before this instant are needed.
        purpose: Purpose that the customers must have agreed to.
        at: Instant at which consent statements must be effective.

    Returns:
        Version of `events` that the sequences were built from.

    Raises:
        ConfigError: There are no sequences.
        ConsentError: See `require_assigned`.
        DataQualityError: They were built for an earlier `as_of` or another configuration, or do not record for which.
    """
    tables.version("sequences")
    lineage = SequencesLineage.from_metadata(tables.commit_metadata("sequences"))
    remedy = "run the stage 'sequences' with the same --as-of"
    if lineage is None:
        raise DataQualityError(
            "the last commit of the table sequences does not record up to when they hold events, or was made by "
            f"another version of lam_spark: {remedy}"
        )
    require_definition(tables, config, "sequences")
    as_of = instant(lineage.as_of)
    if as_of < until:
        raise DataQualityError(
            f"expected sequences of all events before {until:%Y-%m-%d %H:%M} (UTC), found them made for an as_of of "
            f"{as_of:%Y-%m-%d %H:%M} (UTC): later events would be missing; {remedy}"
        )
    require_assigned(
        tables,
        cache,
        lineage.events_version,
        as_of,
        purpose,
        at,
        data_name="the table sequences",
        remedy="run the stage 'sequences' again",
    )
    return lineage.events_version
