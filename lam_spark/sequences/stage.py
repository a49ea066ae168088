"""Stage `sequences`: the vocabulary, and one row a consenting customer with arrays a field.

Cost: a night takes what changed (`increment`); where that cannot be told, all events: the strings are replaced
by ids before the one shuffle (by customer), and time is linear in events. A task holds a few times
`max_events` events of a customer at most.
"""

from __future__ import annotations

from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.runtime.context import Run, StageResult, stage
from lam_spark.sequences.build import Assembler
from lam_spark.sequences.customers import allowed_now, before, beside_events
from lam_spark.sequences.incremental import Outcome, update
from lam_spark.sequences.lineage import Built, digest, last_built
from lam_spark.sequences.settings import BUILD_SETTINGS
from lam_spark.sequences.time_range import bounds_of, check_as_of, instant, micros
from lam_spark.sequences.vocabulary import count_values, extend_vocabulary, top_ids
from lam_spark.storage.settings import session_settings


@stage
def run(run: Run) -> StageResult:
    """Publish `vocabulary`, `value_counts` and `sequences`.

    `sequences`, grain: a customer who is eligible for training or for contact. Columns: `customer_key,
    seq_len (events), events_seen, first_event_time, last_event_time`; arrays of the latest `max_events` events
    before `as_of`, ordered by (event_time, event_id): `event_time BIGINT` (microseconds UTC), `event_order
    BIGINT` (stands for event_id), `hour_of_week INT` (0 = Sunday 00:00 local), one a modelled field; sums of
    the events before these: `truncated_events, truncated_counts` (events by token id of `model.count_by`),
    `truncated_sums` (by numeric field); `seq_hash` of all this.

    Raises:
        ConfigError: `as_of` lies before the first event or too long after the last one.
        ConsentError: nobody is eligible.
        DataQualityError: no eligible customer has an event before `as_of`.
    """
    built, why = last_built(run)
    outcome: Outcome | str = why
    if built is not None:
        outcome = update(run, built, _cut(run))
    mode = "rebuild" if isinstance(outcome, str) else "update"
    facts = {"mode": mode} | ({"why": outcome} if isinstance(outcome, str) else {})
    if isinstance(outcome, str):
        outcome = _rebuild(run)
    return _result(run, outcome, facts)


def _cut(run: Run) -> int:
    """The vocabulary knows events before this instant (microseconds UTC)."""
    return min(micros(run.as_of), run.config.micros(run.config.split.test_start))


def _rebuild(run: Run) -> Outcome:
    """Make all tables of the stage from all events."""
    tables, config = run.tables, run.config
    events = tables.read("events")
    first, last = bounds_of(events)
    check_as_of(run, first, last)
    with session_settings(run.spark, BUILD_SETTINGS):
        allowed = allowed_now(run)
        asked = beside_events(allowed)
        cut = _cut(run)
        trained = before(events, cut).join(asked.where("trains"), "customer_key", "left_semi")
        tables.overwrite(count_values(trained, config), "value_counts")
        added = extend_vocabulary(run, tables.read("value_counts"))
        visible = before(events, micros(run.as_of))
        if visible.join(asked, "customer_key", "left_semi").isEmpty():
            raise DataQualityError(
                f"no eligible customer has an event before {config.as_of}: nothing to learn from"
            )
        vocabulary = run.keep(tables.read("vocabulary"))
        built = Built(
            digest=digest(config),
            events=tables.read_versions["events"],
            consent=tables.read_versions["consent"],
            asked_at=micros(run.started_at),
            value_counts=tables.read_versions["value_counts"],
            as_of=micros(run.as_of),
            cut=cut,
            first_event=first,
            last_event=last,
            top_ids=top_ids(vocabulary),
        )
        count = events.count()
        made = Assembler(run, vocabulary).rows(visible, allowed, count, longest=count)
        rows = tables.overwrite(made, "sequences", note=built.note())
    return Outcome(built, added, {"remade": rows}, {"inserted": rows})


def _result(run: Run, outcome: Outcome, facts: dict[str, str]) -> StageResult:
    sums = (F.count("*"), F.sum("events_seen"), F.sum("seq_len"), F.max("seq_len"))
    totals = run.tables.read("sequences").agg(*sums).first()
    assert totals is not None  # an aggregate without keys gives one row
    rows, seen, kept_events, longest = (int(value or 0) for value in totals)
    written = sum(outcome.rows.get(what, 0) for what in ("inserted", "replaced"))
    changed = sum(outcome.customers.values())
    return StageResult(
        says=(
            f"{rows:,} sequences of {kept_events:,} events, the longest {longest:,}; {facts['mode']} of "
            f"{changed:,} customers, {written:,} rows written; {outcome.values_added:,} new vocabulary entries"
        ),
        counts={
            "sequences": rows,
            "events_in_sequences": kept_events,
            "events_truncated": seen - kept_events,
            "longest_sequence": longest,
            "vocabulary_added": outcome.values_added,
            "customers_changed": changed,
            **{f"customers_{what}": count for what, count in outcome.customers.items()},
            **{f"rows_{what}": count for what, count in outcome.rows.items()},
        },
        facts={
            **facts,
            "first_event": instant(outcome.built.first_event).isoformat(),
            "last_event": instant(outcome.built.last_event).isoformat(),
        },
    )
