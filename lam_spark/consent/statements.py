"""The statements of the ledger's source, with the project's names of purposes and states, or refused.

An opt-out that is not understood must never be ignored: a statement that cannot be read refuses all of them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType

from lam_spark.config import ConsentConfig
from lam_spark.config.consent import comparable_name
from lam_spark.consent.eligibility import OPT_IN, OPT_OUT
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.events.clock import read_local_time, require_clock_format
from lam_spark.events.rules import blank, not_utf8
from lam_spark.identity.pseudonyms import has_control_characters, id_column, id_text
from lam_spark.sources.inputs import Inputs
from lam_spark.storage.dataframes import FrameCache, one_row, require_columns
from lam_spark.storage.time import sql_literal

_COLUMNS = ("customer_id", "purpose", "state", "effective_at", "recorded_at", "source")
_TIMES = ("effective_at", "recorded_at")
# Clocks of two systems may differ by this much.
_CLOCK_SKEW = dt.timedelta(minutes=5)
# A withdrawal before it has seconds that were read as milliseconds, or a placeholder: any opt-in would be later.
_FIRST_TIME = dt.datetime(1980, 1, 1, tzinfo=dt.UTC)
# Milliseconds that are read as seconds are tens of thousands of years later.
_LAST_TIME = dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
# More different names are a sign of the wrong column.
_MAX_NAMES = 200
_MAX_SHOWN = 20
_MAX_SHOWN_CHARACTERS = 40
_ADVICE = "an opt-out may be among them, so none is ingested"


@dataclass(frozen=True)
class Statements:
    """Checked statements of the source.

    Attributes:
        rows: `customer_id` (raw), `purpose`, `state`, `effective_at`, `recorded_at`, `source`, of purposes that stages
            ask for; a statement about several purposes is several rows.
        read: Statements of the source.
        read_at: Instant at which they had been read.
        irrelevant: Those about purposes that are mapped to null.
        unknown_states: Those with a state other than opt_in and opt_out, which count as withdrawals.
    """

    rows: DataFrame
    read: int
    read_at: dt.datetime
    irrelevant: int
    unknown_states: int


def read_statements(
    inputs: Inputs,
    cache: FrameCache,
    consent: ConsentConfig,
    purposes: Sequence[str],
    clock: Callable[[], dt.datetime],
    *,
    folds_case: bool,
) -> Statements:
    """Read the ledger's source once.

    Cost: one pass over the source, and two aggregates over the cached statements; the different names of purposes and
    states come to the driver, at most `_MAX_NAMES` of each.

    Args:
        inputs: Inputs of the stage.
        cache: Cache of the stage.
        consent: Source of the ledger.
        purposes: Purposes that stages ask for.
        clock: Returns the current instant.
        folds_case: Whether customer ids are compared without case.

    Raises:
        ConfigError: The source cannot be read, lacks a column, or has ids or times of a wrong type.
        ConsentError: It holds no statement, one that cannot be understood, or a purpose that is not mapped.
    """
    # Read once: a live database may hold more statements at the insertion, which were not checked.
    statements = cache(_typed(inputs, consent, folds_case))
    names = _names(statements)
    read_at = clock()
    mapped = _mapped_purposes((row[0] for row in names), consent, purposes)
    states = _known_states(row[1] for row in names)
    used = {name: own for name, own in mapped.items() if own}
    total = sum(row[2] for row in names)
    if total == 0:
        raise _no_statements()
    statements = statements.withColumn("state", _replaced("state", states))
    statements = statements.withColumns({name: _time(name, consent) for name in _TIMES})
    _require_readable(statements, total, read_at)
    if not used:
        raise _no_statements(f" about {' or '.join(purposes)}")
    rows = statements.where(F.col("purpose").isin(*used)).withColumn(
        "purpose", F.explode(_arrays("purpose", used))
    )
    return Statements(
        rows=rows,
        read=total,
        read_at=read_at,
        irrelevant=sum(row[2] for row in names if row[0] not in used),
        unknown_states=sum(row[2] for row in names if row[1] not in states and row[0] in used),
    )


def _no_statements(about: str = "") -> ConsentError:
    return ConsentError(
        f"the consent ledger has no statements{about}: by default deny no customer could be trained on or contacted"
    )


def _typed(inputs: Inputs, consent: ConsentConfig, folds_case: bool) -> DataFrame:
    """The selected statements with the columns `_COLUMNS`: ids and names as text, times as selected."""
    selected = inputs.select(consent.select, "consent.select")
    if "recorded_at" not in selected.columns and "effective_at" in selected.columns:
        selected = selected.withColumn("recorded_at", F.col("effective_at"))
    require_columns(selected, _COLUMNS, "consent.select")
    for name in _TIMES:
        kind = selected.schema[name].dataType
        if isinstance(kind, NumericType):
            raise ConfigError(
                f"consent.select yields {name} as {kind.simpleString()}, which does not say its unit: write "
                f"timestamp_seconds({name}) or timestamp_millis({name})"
            )
    if consent.clock is not None:
        require_clock_format(selected.sparkSession, "consent.clock.format", consent.clock)
    return selected.select(
        id_column(selected, "customer_id", "consent.select", folds=folds_case).alias("customer_id"),
        # White space around a value means nothing: an opt-out must not be missed because of it.
        *(id_text(F.col(name).try_cast("string")).alias(name) for name in ("purpose", "state")),
        *_TIMES,
        F.col("source").try_cast("string").alias("source"),
    )


def _time(name: str, consent: ConsentConfig) -> Column:
    """A time as an instant; null if it is not a time."""
    if consent.clock is None:
        return F.col(name).try_cast("timestamp")
    # Of a local time that occurs twice, a withdrawal takes the later instant: an opt-in between must not be later.
    return read_local_time(F.col(name), consent.clock, is_later=_is_withdrawal())[0]


def _is_withdrawal() -> Column:
    return F.coalesce(F.col("state") != OPT_IN, F.lit(True))


def _names(statements: DataFrame) -> list[tuple[str | None, str | None, int]]:
    """Different pairs of purpose and state, with the number of statements."""
    groups = statements.groupBy("purpose", "state").count()
    groups = groups.limit(_MAX_NAMES * _MAX_NAMES + 1)
    rows = [(row["purpose"], row["state"], row["count"]) for row in groups.toLocalIterator()]
    for number, column in enumerate(("purpose", "state")):
        if len({row[number] for row in rows}) > _MAX_NAMES:
            raise ConsentError(
                f"the consent ledger has more than {_MAX_NAMES} different values of {column}: is another column "
                f"selected as {column} in consent.select? Nothing is ingested"
            )
    return rows


def _mapped_purposes(
    names: Iterable[str | None], consent: ConsentConfig, purposes: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Purpose as the ledger writes it -> the purposes that it means; empty if it is not used.

    Raises:
        ConsentError: A purpose is not mapped.
    """
    known: dict[str, tuple[str, ...]] = {purpose: (purpose,) for purpose in purposes}
    known |= {comparable_name(name): own for name, own in consent.purposes.items()}
    present = {name for name in names if name}  # statements without a purpose are refused later
    unknown = sorted(name for name in present if comparable_name(name) not in known)
    if unknown:
        # Many unknown names may be ids of customers, which no message may show.
        shown = ", ".join(repr(name[:_MAX_SHOWN_CHARACTERS]) for name in unknown)
        raise ConsentError(
            f"the consent ledger has {len(unknown)} purposes that are not mapped"
            f"{': ' + shown if len(unknown) <= _MAX_SHOWN else ''}; {_ADVICE}. Map each under consent.purposes to "
            f"{' or '.join(purposes)}, to a list of them (a statement about all purposes), or to null (not used here)"
        )
    return {name: known[comparable_name(name)] for name in present}


def _known_states(names: Iterable[str | None]) -> dict[str, str]:
    """State as the ledger writes it -> opt_in or opt_out; any other is left out, and counts as a withdrawal."""
    present = {name: comparable_name(name) for name in names if name}
    return {name: own for name, own in present.items() if own in (OPT_IN, OPT_OUT)}


def _replaced(column: str, names: Mapping[str, str]) -> Column:
    """The column with names replaced; others stay."""
    value = F.col(column)
    for name, own in names.items():
        if name != own:
            value = F.when(F.col(column) == name, own).otherwise(value)
    return value


def _arrays(column: str, names: Mapping[str, Sequence[str]]) -> Column:
    """The purposes that a column's names mean."""
    pairs = [part for name, own in names.items() for part in (F.lit(name), F.array(*map(F.lit, own)))]
    return F.create_map(*pairs)[F.col(column)]


def _require_readable(statements: DataFrame, total: int, now: dt.datetime) -> None:
    """Check customers, purposes and times, in one pass.

    A withdrawal that is recorded in the future counts; an opt-in would outlast later withdrawals.

    Raises:
        ConsentError: Statements lack one, or a time cannot be right.
    """
    limits = (_FIRST_TIME, _LAST_TIME, now + _CLOCK_SKEW)
    first, last, latest = (F.expr(sql_literal(limit)) for limit in limits)
    effective_at, recorded_at = F.col("effective_at"), F.col("recorded_at")
    is_incomplete = blank("customer_id") | not_utf8("customer_id") | blank("purpose")
    is_too_early = (effective_at < first) | (recorded_at < first)
    problems = {
        "lack a readable customer, purpose or time": is_incomplete
        | effective_at.isNull()
        | recorded_at.isNull(),
        "have a customer id with a control or format character inside": has_control_characters("customer_id"),
        f"have a time after the year {_LAST_TIME.year} (milliseconds that were read as seconds? Write "
        "timestamp_millis in consent.select)": (effective_at > last) | (recorded_at > last),
        f"are withdrawals dated before {_FIRST_TIME.year} (seconds that were read as milliseconds, or a "
        "placeholder?)": _is_withdrawal() & is_too_early,
        f"are opt-ins recorded after this refresh at {now:%Y-%m-%d %H:%M} UTC (local times without a zone? Set "
        "consent.clock)": ~_is_withdrawal() & (recorded_at > latest),
    }
    counts = one_row(
        statements.agg(*(F.count_if(F.coalesce(each, F.lit(False))) for each in problems.values()))
    )
    for text, count in zip(problems, counts, strict=True):
        if count:
            raise ConsentError(
                f"{count:,} of {total:,} consent statements {text}; {_ADVICE}. Correct the ledger's source"
            )
