"""Everything one report shows, as frozen dataclasses of numbers and strings.

Shares, rates, scores, AUCs and gains are fractions between 0 and 1, never percentages. A number that could
not be measured is ``None``; NaN and infinities are shown as missing too. All intervals are 95% intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

RankingKind = Literal["model", "rule", "random"]
"""Where a ranking comes from: the trained model, a simple rule to beat, or a random order."""

Unit = Literal["rows", "events", "customers", "proposals"]
"""What a step of the funnel counts."""

Phase = Literal["pre-training", "fine-tuning", "refit"]
"""A phase of training; the report draws them in this order."""

Measure = Literal["loss", "validation loss", "validation AUC"]
"""What a training curve shows: losses in nats, AUC as a fraction."""


@dataclass(frozen=True, slots=True)
class Nouns:
    """The words of the data set that the generated sentences use.

    Attributes:
        customer: One customer, e.g. "household".
        customers: Several customers, e.g. "households".
        example: One held-out example, e.g. "contact".
        examples: Several held-out examples, e.g. "contacts".
        outcome_verb: The target as a past-tense verb without an object, e.g. "redeemed"; it follows "The tenth of
            contacts that the model ranked first".
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
        label: What the number is, in a few words.
        value: The number, already formatted (at most about 8 characters look good).
        note: One short sentence that puts the number in proportion.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """One reason why a step of the funnel is smaller than the step before it.

    Attributes:
        reason: The reason in plain words, e.g. "no consent for marketing".
        count: What was lost for it, in the unit of the step before.
    """

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """One step of the way from raw rows to delivered customers.

    A step continues the one before it if it has losses or counts the same unit; the report then checks that
    ``previous.count == count + sum(losses)`` and shows a mismatch in red. A step in another unit without
    losses is a recount (events, then the customers behind them): it is not checked, and its bar starts a new
    scale. Losses of the first step have nothing to be lost from and are listed unchecked.

    Attributes:
        label: The step in a few words, e.g. "customers with consent".
        count: What is left after this step, in ``unit``.
        unit: What ``count`` counts.
        losses: What was lost between the previous step and this one, reason by reason.
        note: One sentence on the step, or empty.
    """

    label: str
    count: int
    unit: Unit
    losses: tuple[Loss, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class SourceCount:
    """What became of the raw rows of one source; every row is one of the four.

    Attributes:
        source: The source's name.
        rows_in: Raw rows read.
        events: Rows that became an event.
        duplicates: Rows dropped as a repeat of an event already there.
        quarantined: Rows set aside because they broke a rule.
        unresolved: Rows set aside because their id (a cookie, a phone) is nobody's yet.
    """

    source: str
    rows_in: int
    events: int
    duplicates: int
    quarantined: int
    unresolved: int = 0


@dataclass(frozen=True, slots=True)
class Decile:
    """One tenth of the held-out examples in the order of a ranking.

    Attributes:
        decile: 1 (ranked first) to 10 (ranked last).
        examples: Examples in the tenth; fractional where ties are shared out.
        positives: Examples in it that reached the target; fractional where ties are shared out.
        rate: ``positives / examples``, a fraction.
        lift: ``rate`` over the rate of all held-out examples; 1.0 is random.
        cumulative_gain: The share of all positives found in this tenth and those ranked before it.
    """

    decile: int
    examples: float
    positives: float
    rate: float
    lift: float
    cumulative_gain: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one ordering of the held-out examples did.

    Attributes:
        name: For a rule a phrase that follows "ordering by", e.g. "previous redemptions"; for the model its
            name.
        kind: "model", "rule" or "random".
        description: One line on how the ordering is made.
        auc: Area under the ROC curve, 0.5 is random; None if it cannot be measured.
        auc_low: Lower end of the 95% interval of ``auc``, or None.
        auc_high: Upper end of it, or None.
        deciles: The ten tenths, ranked first to last; empty if they cannot be measured.
        lead_low: Lower end of the 95% interval of (model's AUC - this AUC) over paired resamples, or None.
            Where both ends are given they decide whether the model leads; else the two AUC intervals do.
        lead_high: Upper end of it, or None.
        lift_range: 95% interval of the first tenth's lift, or None.
        lift_lead: The same of (model's lift - this lift) over paired resamples, or None.
    """

    name: str
    kind: RankingKind
    description: str
    auc: float | None
    auc_low: float | None = None
    auc_high: float | None = None
    deciles: tuple[Decile, ...] = ()
    lead_low: float | None = None
    lead_high: float | None = None
    lift_range: tuple[float, float] | None = None
    lift_lead: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What happened in the period that the model never saw, one example per contact in it.

    Attributes:
        period_start: First day of the period.
        period_end: Last day of the period.
        examples: Examples in the period.
        positives: Examples that reached the target.
        rankings: The model first, then the rules, then random order.
    """

    period_start: date
    period_end: date
    examples: int
    positives: int
    rankings: tuple[Ranking, ...]

    @property
    def model(self) -> Ranking | None:
        """The model's ranking, or None if there is none."""
        return next((r for r in self.rankings if r.kind == "model"), None)

    @property
    def rule(self) -> Ranking | None:
        """The rule with the highest AUC - the one to beat - or None if there is none."""
        rules = [r for r in self.rankings if r.kind == "rule"]
        return max(rules, key=lambda r: -1.0 if r.auc is None else r.auc, default=None)

    @property
    def base_rate(self) -> float | None:
        """The share of the examples that reached the target, or None if there are no examples."""
        return self.positives / self.examples if self.examples else None


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Held-out examples with about the same predicted chance.

    Attributes:
        mean_predicted: Their mean predicted chance, a fraction.
        observed: The share of them that reached the target.
        observed_low: Lower end of the 95% interval of ``observed``.
        observed_high: Upper end of it.
        examples: How many they are.
    """

    mean_predicted: float
    observed: float
    observed_low: float
    observed_high: float
    examples: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether predicted chances came true in the held-out period.

    Attributes:
        bins: The bins, lowest predicted chance first.
        brier: Mean squared error of the predicted chances (0 is perfect), or None.
        brier_of_base_rate: The same for predicting the base rate for everyone, or None.
        expected_calibration_error: Mean distance of predicted and observed over the bins, weighted by
            examples, as a fraction; or None.
    """

    bins: tuple[CalibrationBin, ...]
    brier: float | None
    brier_of_base_rate: float | None
    expected_calibration_error: float | None


@dataclass(frozen=True, slots=True)
class ProposalCount:
    """One proposal on the contact list.

    Attributes:
        proposal: The proposal's key or short name.
        description: What it offers, in plain words.
        customers: Customers on the list who get it.
        mean_score: Their mean predicted chance, a fraction.
    """

    proposal: str
    description: str
    customers: int
    mean_score: float


@dataclass(frozen=True, slots=True)
class Contact:
    """One line of the contact list: one customer and the one proposal for them.

    Attributes:
        rank: 1 is contacted first.
        customer_key: The customer's key; the report prints its first 12 characters.
        proposal: The proposal's key or short name.
        description: What it offers.
        score: The predicted chance, a fraction.
    """

    rank: int
    customer_key: str
    proposal: str
    description: str
    score: float


@dataclass(frozen=True, slots=True)
class HistogramBin:
    """Customers on the list with a score in ``[low, high)``; the bounds are fractions."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class ContactList:
    """The list the run delivers.

    Attributes:
        path: Where its CSV is, as the reader should type it.
        customers: Customers on the list, one row each.
        capacity: The most customers it may hold.
        by_proposal: The list by proposal, in the order to show; their customers should sum to ``customers``.
        head: The first lines of the list (about 15).
        score_histogram: The scores of the list.
    """

    path: str
    customers: int
    capacity: int
    by_proposal: tuple[ProposalCount, ...] = ()
    head: tuple[Contact, ...] = ()
    score_histogram: tuple[HistogramBin, ...] = ()


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One measurement during training.

    Attributes:
        phase: The phase of training it belongs to.
        epoch: Passes over the training data so far in this phase; may be fractional.
        name: What was measured.
        value: Nats for the losses, a fraction for AUC.
    """

    phase: Phase
    epoch: float
    name: Measure
    value: float


@dataclass(frozen=True, slots=True)
class Training:
    """How the model was trained.

    Attributes:
        curves: The measurements, in any order.
        facts: (label, value) pairs to list beside them, already formatted: parameters, tokens, seconds,
            ranks.
    """

    curves: tuple[CurvePoint, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ConsentCount:
    """Customers by their consent for one purpose; every customer is counted in exactly one column.

    Attributes:
        purpose: The purpose, e.g. "marketing by post".
        opted_in: Customers who agreed.
        opted_out: Customers who refused or withdrew.
        never_asked: Customers without any record.
        unclear: Customers whose records contradict each other.
    """

    purpose: str
    opted_in: int
    opted_out: int
    never_asked: int
    unclear: int


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of the run cost.

    Attributes:
        stage: The stage's name.
        seconds: Wall-clock seconds.
        peak_memory_gib: Peak resident memory in GiB, or None if it was not measured.
    """

    stage: str
    seconds: float
    peak_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class VersionGroup:
    """A titled table of (name, version) rows, e.g. tables with their Delta versions."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReportContext:
    """The full input of one report.

    Attributes:
        title: The report's title.
        data_set: The data set's name in plain words.
        as_of: The last day whose events the scores may use.
        generated_at: When the report was made, with a time zone; shown in UTC.
        run_id: The run's identifier.
        target: What the score predicts, in words that follow "the chance that a household", e.g. "redeems a
            coupon of the campaign within its running time".
        contact_list: The list the run delivers.
        headlines: The large numbers at the top, three of them by design.
        held_out: What happened in the held-out period, or None if none was held out.
        calibration: Whether the chances came true, or None if it was not measured.
        funnel: The steps from raw rows to delivered customers.
        sources: What became of each source's rows.
        consent: Customers by consent, one row per purpose.
        training: How the model was trained, or None if this run trained none.
        stages: What each stage cost, in the order they ran.
        versions: Versions of everything that went into the report.
        notes: Caveats in plain language.
        nouns: The words of the data set that the sentences use.

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
    calibration: Calibration | None = None
    funnel: tuple[FunnelStep, ...] = ()
    sources: tuple[SourceCount, ...] = ()
    consent: tuple[ConsentCount, ...] = ()
    training: Training | None = None
    stages: tuple[StageCost, ...] = ()
    versions: tuple[VersionGroup, ...] = ()
    notes: tuple[str, ...] = ()
    nouns: Nouns = field(default_factory=Nouns)

    def __post_init__(self) -> None:
        if self.generated_at.utcoffset() is None:
            raise ValueError("generated_at needs a time zone")
