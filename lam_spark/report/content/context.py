"""The full input of one report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime

from lam_spark.report.content.contacts import ContactList
from lam_spark.report.content.data import (
    Arrival,
    ConsentCount,
    FunnelStep,
    Lookup,
    QueryCount,
    SourceCount,
    StaleChannel,
)
from lam_spark.report.content.evaluation import Calibration, HeldOut, TargetResult
from lam_spark.report.content.training import StageCost, Training


@dataclass(frozen=True, slots=True)
class Nouns:
    """The data set's own words, which the generated sentences use.

    Attributes:
        customer: One customer, e.g. "household".
        customers: Several customers, e.g. "households".
        example: One held-out example, e.g. "contact".
        examples: Several held-out examples, e.g. "contacts".
        outcome_verb: The target as a past-tense verb without an object, e.g. "redeemed"; it follows "Contacts in
            the model's top decile".
    """

    customer: str = "customer"
    customers: str = "customers"
    example: str = "example"
    examples: str = "examples"
    outcome_verb: str = "reached the target"


@dataclass(frozen=True, slots=True)
class Headline:
    """One of the large numbers at the top of the report.

    Attributes:
        label: Name of the number, a few words.
        value: The formatted number (at most about 8 characters fit well).
        note: One short sentence that gives the number a reference.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class VersionGroup:
    """A titled table of (name, version) rows, e.g. tables with their Delta versions."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReportContext:
    """The full input of one report.

    Attributes:
        title: Title of the report.
        data_set: Name of the data set in plain words.
        as_of: Last day whose events the scores may use.
        generated_at: When the report was generated, with a time zone; shown in UTC.
        run_id: Identifier of the run.
        target: What the score predicts, in words that follow "the probability that a household", e.g. "redeems a
            coupon of the campaign within its running time".
        contact_list: The list that the run delivers.
        headlines: The large numbers at the top; the layout is made for three.
        held_out: Results on the held-out period, or None if the model is not measured.
        not_measured: Why the model is not measured; empty if it is.
        targets: Every target on the held-out period, the scored one first.
        queries: What became of all queries of every target.
        has_offer: Whether a score assumes a proposed event; a question such as churn has none.
        calibration: Calibration of the probabilities, or None if it was not measured.
        funnel: Steps from raw rows to delivered customers.
        sources: Row status counts by source.
        arrivals: Declared and measured delays of the channels that were measured.
        stale_channels: Channels that were silent for too long when the customers were scored.
        lookups: Versions of the look-ups that map raw rows.
        consent: Customers by consent status, one row per purpose.
        training: How the model was trained, or None if no model was trained.
        stages: Cost of every stage, in the order they ran.
        versions: Versions of everything that went into the report.
        notes: Limitations in plain words.
        nouns: The data set's own words.

    Raises:
        ValueError: If ``generated_at`` has no time zone.
    """

    title: str
    data_set: str
    as_of: date
    generated_at: datetime
    run_id: str
    target: str
    contact_list: ContactList
    headlines: tuple[Headline, ...] = ()
    held_out: HeldOut | None = None
    not_measured: str = ""
    targets: tuple[TargetResult, ...] = ()
    queries: tuple[QueryCount, ...] = ()
    has_offer: bool = True
    calibration: Calibration | None = None
    funnel: tuple[FunnelStep, ...] = ()
    sources: tuple[SourceCount, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    stale_channels: tuple[StaleChannel, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    consent: tuple[ConsentCount, ...] = ()
    training: Training | None = None
    stages: tuple[StageCost, ...] = ()
    versions: tuple[VersionGroup, ...] = ()
    notes: tuple[str, ...] = ()
    nouns: Nouns = field(default_factory=Nouns)

    def __post_init__(self) -> None:
        if self.generated_at.utcoffset() is None:
            raise ValueError(
                f"expected generated_at with a time zone, got {self.generated_at.isoformat()}: pass an aware datetime, "
                "e.g. datetime.now(UTC)"
            )
