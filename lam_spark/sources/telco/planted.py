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
    heavy: float = 0.003


PLANTED = Planted()


def largest_customer_events(customers: int) -> int:
    """App and web events of customer 0: a share that grows with the size, up to a million events."""
    return min(1_000_000, int(0.5 * customers**1.2))
