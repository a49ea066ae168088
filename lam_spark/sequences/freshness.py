"""Whether `sequences` and `examples` are those that a run needs: made for its `as_of` and its periods of `split`, of
events that still belong to whom they did.
"""

from __future__ import annotations

import datetime as dt

from lam_spark.config import Config
from lam_spark.consent.eligibility import count_disowned
from lam_spark.errors import ConsentError, DataQualityError
from lam_spark.runtime.context import Run
from lam_spark.sequences.time_range import instant
from lam_spark.sequences.vocabulary import is_numbered_by

# In the notes of `examples` and of the training snapshot: their dates, the version of `events` that they are of, and
# the vocabulary whose ids they hold (`vocabulary.numbering`).
AS_OF, PERIODS, EVENTS, NUMBERING = "as_of", "periods", "events", "vocabulary"


def periods_of(config: Config) -> dict[str, str]:
    """The dates of `split` as instants (ISO 8601, UTC)."""
    return {name: config.instant(day).isoformat() for name, day in config.split}


def require_owned(
    run: Run, since: int | None, until: dt.datetime, purpose: str, what: str, again: str
) -> None:
    """Hold what was made of version `since` of `events` against what became of these events.

    Args:
        run: of the stage.
        since: the version; None: unknown.
        until: events before this instant are in what was made.
        purpose: that their customers have to agree to.
        what: was made, for the error.
        again: what to do, for the error.

    Raises:
        ConsentError: some were deleted, or belong now to somebody who does not agree; or it cannot be told.
    """
    disowned = None if since is None else count_disowned(run, since, until, purpose)
    if disowned is None:
        raise ConsentError(
            f"the events were replaced since {what} was made of them, VACUUM has removed what tells of their changes, "
            f"or it does not say of which version it is: whose they are now cannot be told; {again}"
        )
    if disowned:
        raise ConsentError(
            f"{disowned:,} events that may be in {what} were deleted since, or a link has moved them to somebody who "
            f"does not agree to {purpose!r}: {again}"
        )


def require_sequences(run: Run, reached: dt.datetime, purpose: str) -> int:
    """Hold `sequences` against an instant: all events before it must have been there to be seen.

    Later events do no harm: whatever is asked of a sequence sees what lies before the question.

    Returns:
        The version of `events` that they were made of.

    Raises:
        ConfigError: there are no sequences.
        ConsentError: as of `require_owned`.
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
    events = int(note["events"])
    require_owned(run, events, held, purpose, "the table 'sequences'", "run the stage 'sequences' again")
    return events


def require_examples(run: Run) -> int:
    """Hold `examples` against the run's dates, and `sequences` against those of the examples.

    Returns:
        The version of `events` that the earlier of the two was made of.

    Raises:
        ConfigError: one of the tables is not there.
        ConsentError: as of `require_owned`.
        DataQualityError: the examples are of other periods, of a later `as_of` or of another vocabulary, or do not say
            of which; or what customers did before them is not in the sequences.
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
    if not is_numbered_by(run.tables.read("vocabulary"), note.get(NUMBERING)):
        raise DataQualityError(
            f"the examples hold the ids of another vocabulary than the present one, or do not say of which: {again}"
        )
    made = dt.datetime.fromisoformat(note[AS_OF])
    if made > run.as_of:
        raise DataQualityError(
            f"the examples were made for an as_of of {made:%Y-%m-%d %H:%M} (UTC), so their labels know what happened "
            f"after as_of {config.as_of}: {again}"
        )
    of_sequences = require_sequences(run, made, config.consent.training_purpose)
    require_owned(
        run,
        note.get(EVENTS),
        made,
        config.consent.training_purpose,
        "the table 'examples'",
        "run the stage 'examples' again",
    )
    return min(of_sequences, int(note[EVENTS]))
