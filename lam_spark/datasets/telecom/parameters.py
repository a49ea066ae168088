"""Ground-truth parameters of the synthetic data set: size, calendar, behaviour, identities and consent.

The best possible model, the effect of a call and the bias of the former targeting follow from these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86_400  # seconds
# All times are seconds after this instant (UTC). The year ends at the start of 2024-12-31.
START = "2024-01-01T00:00:00"
DAYS = 365
SPAN = DAYS * DAY
# Lisbon is one hour ahead of UTC from 31 March to 27 October, 01:00 UTC.
SPRING, AUTUMN = 90 * DAY + 3_600, 300 * DAY + 3_600
NEVER = 1 << 40  # seconds; later than any event
CHUNK_SIZE = 500  # customers who share one stream of random numbers

STATES = (
    "none",
    "browse_inquire_buy",
    "inquire_buy_browse",
    "compare_then_silent",
    "compare_and_go_on",
)
NO_STATE, BUY_LAST, BROWSE_LAST, SILENT, ACTIVE = range(len(STATES))
OFFERS = ("plan_m", "plan_l", "family", "data_pack")
FAMILY = OFFERS.index("family")
PLANS = ("plan_s", "plan_m", "plan_l")
PLAN_PRICES = (15.0, 25.0, 40.0)  # euros per month
AGE_BANDS = ("18-24", "25-34", "35-49", "50-64", "65+")
REGIONS = ("lisboa", "porto", "centro", "alentejo", "algarve")
GENDERS = ("female", "male", "unstated")
CONTRACT_TYPES = ("prepaid", "monthly", "two_years")


@dataclass(frozen=True)
class BehaviourParameters:
    """Parameters of the simulated behaviour.

    Logits are natural. Shares are of customers unless stated otherwise.

    Attributes:
        wave_first_day, wave_every_days, wave_jitter_days, waves: dates of a customer's queries, one per wave.
        horizon_days: an upgrade is ordered within this many days of the query.
        state_shares: share of queries for each behaviour before the query, in the order of `STATES`.
        state_logits: effect of that behaviour on an upgrade. Both triples have the same actions, counts and
            gaps in a different order. Both comparisons have the same actions; one is followed by silence.
        silent_days: days before the query in which silent customers do nothing themselves.
        base_logit: upgrade logit without any of these effects.
        parent_share: parents of small children: never in a shop, use the app at night, answer calls.
        reluctant_share: customers with a negative uplift (do not disturb); they open no mail and complain of
            calls.
        answer_probability...: probability that a call is answered, and what the traits add to it.
        effect_...logit: effect of an answered call on the upgrade logit; negative for reluctant customers.
        control_share: share of the selected customers who are randomised to the control arm.
        selection_...logit: former targeting; it used region and age in addition to the need.
        churn_share: customers who cancel within the year. From `churn_signal_days` before, they call more and
            use less.
        decoy_share: share of the other customers who visit the cancel page and call like churning customers.
        night_sale_share: customers who buy in the night in which the clocks are set back.
        very_active_share: customers with 20 to 150 times the usual use of app and web (Pareto).
    """

    wave_first_day: int = 35
    wave_every_days: int = 57
    wave_jitter_days: int = 8
    waves: int = 6
    horizon_days: int = 28
    state_shares: tuple[float, ...] = (0.40, 0.18, 0.18, 0.12, 0.12)
    state_logits: tuple[float, ...] = (0.0, 0.2, 2.0, 2.3, 0.2)
    silent_days: float = 11.5
    base_logit: float = -2.9
    parent_share: float = 0.25
    reluctant_share: float = 0.15
    answer_probability: float = 0.40
    answer_probability_parent: float = 0.40
    answer_probability_reluctant: float = -0.15
    effect_logit: float = 0.5
    effect_parent_logit: float = 0.6
    effect_family_offer_parent_logit: float = 0.5
    effect_reluctant_logit: float = -1.8
    control_share: float = 0.20
    selection_base_logit: float = -1.1
    selection_need_logit: float = 0.8
    selection_lisboa_logit: float = 0.9
    selection_age_65_logit: float = -0.9
    churn_share: float = 0.12
    churn_signal_days: int = 56
    decoy_share: float = 0.20
    night_sale_share: float = 0.02
    very_active_share: float = 0.003


@dataclass(frozen=True)
class IdentityParameters:
    """Parameters of how ids relate to customers.

    Shares are of customers, or of pairs of neighbouring customers where stated.

    Attributes:
        registered_by_day: the first link of a device, a cookie or a late card is before this day. Earlier
            events stay unassigned if they precede that link by more than the look-back.
        late_card_share: cards whose first link is that late; other cards are linked with the contract.
        new_device_share, new_card_share, new_address_share: customers who change it within the year.
        linked_within_days: a new device, cookie or address is linked at most this many days after first use.
        cleared_cookies: mean number of cookies that a customer clears in the year.
        anonymous_view_share: share of the web views of devices under a cookie that never logs in.
        family_share: of pairs; one device is shared, and users do not always log in.
        family_login_probability: probability of a login before such a use.
        transferred_number_share: of pairs; a phone number passes from the first to the second customer.
        conflicting_number_share: of pairs; a number is linked to both at one instant, until a later correction.
        kiosk_share: customers who use a shop's kiosk, which is never assigned (customers 1 to 6 always do).
        kiosk_event_share: share of their ordinary app events on the kiosk.
    """

    registered_by_day: int = 37
    late_card_share: float = 0.05
    new_device_share: float = 0.20
    new_card_share: float = 0.15
    new_address_share: float = 0.08
    linked_within_days: int = 20
    cleared_cookies: float = 0.8
    anonymous_view_share: float = 0.15
    family_share: float = 0.08
    family_login_probability: float = 0.7
    transferred_number_share: float = 0.05
    conflicting_number_share: float = 0.03
    kiosk_share: float = 0.04
    kiosk_event_share: float = 0.10


BEHAVIOUR = BehaviourParameters()
IDENTITY = IdentityParameters()
# Consent history -> share of customers. The names refer to (model_training, direct_marketing).
CONSENT_SHARES = {
    "both": 0.72,
    "training only": 0.05,
    "contact only": 0.03,
    "withdrew contact": 0.05,
    "withdrew both": 0.03,
    "came back": 0.02,
    "contradicted": 0.01,
    "refused": 0.04,
    "never asked": 0.05,
}


@dataclass(frozen=True)
class SyntheticDataSet:
    """Arguments that determine every byte of the data set, independent of Spark's partitioning.

    Attributes:
        customers: number of customers, numbered from 0. Customer 0 has by far the longest history.
        seed: seed of all random numbers.
        dirty_share: expected share of dirty rows among all rows of a feed.
    """

    customers: int
    seed: int
    dirty_share: float

    @property
    def part_chunks(self) -> int:
        """Chunks per part: small data sets still get several parts, large ones not too many files."""
        chunks = -(-self.customers // CHUNK_SIZE)
        return min(20, max(1, chunks // 8))

    @property
    def parts(self) -> int:
        """Number of parts; each writes two files per feed."""
        return -(-self.customers // (CHUNK_SIZE * self.part_chunks))

    def chunks(self, part: int) -> range:
        """The chunks of a part; chunk c starts at customer c x `CHUNK_SIZE`."""
        last = -(-self.customers // CHUNK_SIZE)
        return range(part * self.part_chunks, min(last, (part + 1) * self.part_chunks))


def largest_customer_events(customers: int) -> int:
    """App and web events of customer 0: grows with the number of customers, up to one million."""
    return min(1_000_000, int(0.5 * customers**1.2))
