"""Sections `ingest` and `quality`: how much is ingested, and which data stops a run."""

from __future__ import annotations

import datetime as dt

from pydantic import Field

from lam_spark.config.base import Section


class IngestConfig(Section):
    """How much the stage `ingest` reads."""

    rebuild: bool = Field(
        default=False, description="read all inputs again and replace the events; false: read new rows only"
    )


class QualityConfig(Section):
    """Quality gates. A run that exceeds one stops and publishes nothing."""

    max_quarantine_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of quarantined rows among a channel's new rows"
    )
    max_unresolved_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="largest share of rows without a customer among a channel's new rows",
    )
    earliest: dt.date = Field(
        default=dt.date(2000, 1, 1), description="rows with an earlier `event_time` are quarantined"
    )
    max_staleness_days: int = Field(
        default=7, ge=0, description="most days between the last event and `as_of`"
    )
    min_positives: int = Field(
        default=30,
        ge=1,
        description="fewest queries of each class of a binary target, and of all queries of another target, in a "
        "period: with fewer in the training period `train` stops; with fewer in the validation or test period the "
        "target is not measured there",
    )
