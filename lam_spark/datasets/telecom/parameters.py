"""What is planted in the drawn logs: every parameter that a reader of the truth file needs to know.

The optimum of a model, the effect of a call and the bias of the old targeting all follow from these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

DAY = 86_400  # seconds
# All times are seconds after this instant (UTC). The year ends before the day 2024-12-31 begins.
START = "2024-01-01T00:00:00"
DAYS = 365
SPAN = DAYS * DAY
# Lisbon is an hour ahead of UTC from 31 March to 27 October, 01:00 UTC.
SPRING, AUTUMN = 90 * DAY + 3_600, 300 * DAY + 3_600
NEVER = 1 << 40  # seconds; later than anything that happens
RANDOM_CHUNK = 500  # customers that share one stream of random numbers

STATES = (
    "none",
    "browse_inquire_buy",
    "inquire_buy_browse",
    "compare_then_silent",
    "compare_and_go_on",
)
NONE, BROWSE_LAST_NOT, BROWSE_LAST, SILENT, GOES_ON = range(len(STATES))
OFFERS = ("plan_m", "plan_l", "family", "data_pack")
FAMILY = OFFERS.index("family")
PLANS = ("plan_s", "plan_m", "plan_l")
PLAN_PRICES = (15.0, 25.0, 40.0)  # euros a month
AGE_BANDS = ("18-24", "25-34", "35-49", "50-64", "65+")
REGIONS = ("lisboa", "porto", "centro", "alentejo", "algarve")
GENDERS = ("female", "male", "unstated")
CONTRACT_TYPES = ("prepaid", "monthly", "two_years")


@dataclass(frozen=True)
class Planted:
    """Parameters of the drawn behaviour; logits are natural, shares are of customers unless said otherwise.

    Attributes:
        wave_first_day, wave_every_days, wave_jitter_days, waves: when a customer's queries are: one a wave.
        horizon_days: a wanted upgrade is ordered within so many days of the query.
        state_shares: of queries, what a customer did before the query, in the order of `STATES`.
        state_logits: what that adds to the want of an upgrade; the two triples have the same actions, the
            same number of them and the same gaps, in another order; the two comparisons have the same
            actions too, only that one stops and falls silent.
        silent_days: before the query, nothing the silent do themselves.
        base_logit: want of an upgrade without any of it.
        parents: share with small children: never in a shop, on the app at night, there when called.
        reluctant: share that a call puts off; they open no mail and complain of calls.
        answer, answer_parent, answer_reluctant: probability that a call is answered, and what is added.
        effect_logit...: of an answered call on the want of an upgrade; below zero for the reluctant.
        control_share: of the selected, not called at random.
        select_...: the old targeting, a logit: beside the need it looked at region and age.
        churners: share that cancels in the year; warned_days before it they call more and use less.
        decoys: share of the others that look at the cancel page and call as if they would leave.
        night_sale: share that buys in the night in which the clocks are set back.
        heavy: share with 20 to 150 times the usual use of app and web (Pareto).
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
    parents: float = 0.25
    reluctant: float = 0.15
    answer: float = 0.40
    answer_parent: float = 0.40
    answer_reluctant: float = -0.15
    effect_logit: float = 0.5
    effect_parent_logit: float = 0.6
    effect_family_offer_parent_logit: float = 0.5
    effect_reluctant_logit: float = -1.8
    control_share: float = 0.20
    select_base_logit: float = -1.1
    select_need_logit: float = 0.8
    select_lisboa_logit: float = 0.9
    select_age_65_logit: float = -0.9
    churners: float = 0.12
    warned_days: int = 56
    decoys: float = 0.20
    night_sale: float = 0.02
    heavy: float = 0.003


@dataclass(frozen=True)
class PlantedIds:
    """How ids relate to customers; shares are of customers, or of pairs of neighbours where said.

    Attributes:
        registered_by_day: a device's, a cookie's and a late card's first link is before this day. What was
            done with it more than the look-back earlier belongs to nobody.
        late_cards: cards whose first link is as late as that; the others were linked with the contract.
        new_device, new_card, new_address: change it in the year.
        linked_within_days: a new device, cookie or address is linked so many days after its first use.
        cleared: mean number of cookies thrown away a customer and year.
        unseen: of the looks at devices on the web, with a cookie that never logs in.
        families: of pairs, share one device, on which not every user logs in before each use.
        family_login: probability of such a login.
        handed_on: of pairs, a phone number goes from the first to the second.
        doubly_owned: of pairs, a number is given to both at the same instant, until this is mended.
        kiosk: use a shop's device that belongs to nobody (customers 1 to 6 always do); kiosk_use is the
            share of their ordinary app events that happen there.
    """

    registered_by_day: int = 37
    late_cards: float = 0.05
    new_device: float = 0.20
    new_card: float = 0.15
    new_address: float = 0.08
    linked_within_days: int = 20
    cleared: float = 0.8
    unseen: float = 0.15
    families: float = 0.08
    family_login: float = 0.7
    handed_on: float = 0.05
    doubly_owned: float = 0.03
    kiosk: float = 0.04
    kiosk_use: float = 0.10


PLANTED = Planted()
IDS = PlantedIds()
# What customers stated about (model_training, direct_marketing), in shares of customers.
CONSENT = {
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
class World:
    """What decides every byte: nothing else does, least of all how Spark spreads the work.

    Attributes:
        customers: numbered from 0; customer 0 has far more events than anyone else.
        dirty_share: dirty rows among all rows of a feed, in the mean.
    """

    customers: int
    seed: int
    dirty_share: float

    @property
    def part_chunks(self) -> int:
        """Chunks that share their files: few customers still make some parts, many make no crowd of files."""
        chunks = -(-self.customers // RANDOM_CHUNK)
        return min(20, max(1, chunks // 8))

    @property
    def parts(self) -> int:
        """How many parts there are; each writes two files of every feed."""
        return -(-self.customers // (RANDOM_CHUNK * self.part_chunks))

    def chunks(self, part: int) -> range:
        """The chunks of a part; chunk c holds the customers from c x `RANDOM_CHUNK` on."""
        last = -(-self.customers // RANDOM_CHUNK)
        return range(part * self.part_chunks, min(last, (part + 1) * self.part_chunks))


def largest_customer_events(customers: int) -> int:
    """App and web events of customer 0: a share that grows with the size, up to a million events."""
    return min(1_000_000, int(0.5 * customers**1.2))
