"""Whether `sequences` and `examples` were made for the dates that a run has: its `as_of`, its periods of `split`."""

from __future__ import annotations

import datetime as dt

from lam_spark.config import Config
from lam_spark.errors import DataQualityError
from lam_spark.run import Run
from lam_spark.sequences.bounds import instant

# In the notes of `examples` and of the training snapshot.
AS_OF, PERIODS = "as_of", "periods"


def periods_of(config: Config) -> dict[str, str]:
    """The dates of `split` as instants (ISO 8601, UTC)."""
    return {name: config.instant(day).isoformat() for name, day in config.split}


def require_sequences(run: Run, reached: dt.datetime) -> None:
    """Hold `sequences` against an instant: all events before it must have been there to be seen.

    Later events do no harm: whatever is asked of a sequence sees what lies before the question.

    Raises:
        ConfigError: there are no sequences.
        DataQualityError: they were made for an earlier `as_of`, or do not say for which.
    """
    run.tables.version("sequences")
    note = run.tables.note_of("sequences")
    again = "run the stage 'sequences' with the same --as-of"
    if note is None:
        raise DataQualityError(
            f"the sequences' last change does not say up to when they hold events: {again}"
        )
    held = instant(note["as_of"])
    if held < reached:
        raise DataQualityError(
            f"expected sequences of all events before {reached:%Y-%m-%d %H:%M} (UTC), found them made for an as_of of "
            f"{held:%Y-%m-%d %H:%M}: what customers did since would be missing; {again}"
        )


def require_examples(run: Run) -> None:
    """Hold `examples` against the run's dates, and `sequences` against those of the examples.

    Raises:
        ConfigError: one of the tables is not there.
        DataQualityError: the examples are of other periods or of a later `as_of`, or do not say of which; or what
            customers did before them is not in the sequences.
    """
    config = run.config
    for name in ("sequences", "examples"):
        run.tables.version(name)  # of those that are missing, the stage that comes first is named
    note = run.tables.note_of("examples")
    again = "run the stage 'examples' with the same --as-of"
    if note is None:
        raise DataQualityError(
            f"the examples' last change does not say for which dates they were made: {again}"
        )
    if note[PERIODS] != periods_of(config):
        was = ", ".join(f"{name} {day}" for name, day in note[PERIODS].items())
        raise DataQualityError(
            f"the examples were made for other dates of split ({was}) than configured: {again}"
        )
    made = dt.datetime.fromisoformat(note[AS_OF])
    if made > run.as_of:
        raise DataQualityError(
            f"the examples were made for an as_of of {made:%Y-%m-%d %H:%M} (UTC), so their labels know what happened "
            f"after as_of {config.as_of}: {again}"
        )
    require_sequences(run, made)
