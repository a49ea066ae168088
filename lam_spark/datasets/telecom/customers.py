"""Who the customers are, what they want at each query, and what a call changes.

A chunk of customers at a time, in numpy. `n` customers, `w` waves (a customer's queries). Times are seconds
after `START`, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    BROWSE_LAST,
    CONTRACT_TYPES,
    DAY,
    FAMILY,
    GENDERS,
    NEVER,
    OFFERS,
    PLANS,
    PLANTED,
    REGIONS,
    SILENT,
    STATES,
)
from lam_spark.model.metrics import sigmoid

Array = npt.NDArray[Any]

# Lisbon is an hour ahead of UTC from day 90 (31 March) to day 299 (26 October).
_SUMMER_DAYS = (90, 300)


@dataclass(frozen=True)
class Traits:
    """Arrays (n,). `churn_at` is `NEVER` for those who stay; `activity` multiplies app and web use.

    The contract began `contract_days` before `START`; `age_band` and the like are positions in their lists.
    """

    number: Array
    age_band: Array
    gender: Array
    region: Array
    contract_type: Array
    contract_days: Array
    plan: Array
    parent: Array
    reluctant: Array
    churn_at: Array
    decoy: Array
    activity: Array


@dataclass(frozen=True)
class Queries:
    """Arrays (n, w): a customer's state at each query, who was chosen and called, and what came of it.

    Attributes:
        live: the customer had not left.
        p_control, p_treated: true probability of an upgrade within the horizon without and with a call of
            the drawn offer; 0 for those who leave within the horizon.
        ordered_at: the upgrade, `NEVER` where there is none.
    """

    at: Array
    state: Array
    live: Array
    p_select: Array
    selected: Array
    treated: Array
    offer: Array
    answered: Array
    p_control: Array
    p_treated: Array
    ordered_at: Array


def draw_traits(rng: np.random.Generator, first: int, count: int) -> Traits:
    """Draw the customers `first` to `first + count - 1`, who they are and whether they will leave."""
    number = np.arange(first, first + count)
    u = rng.random(count)
    heavy = rng.random(count) < PLANTED.heavy
    pareto = np.minimum(20 * (1 - u) ** (-1 / 1.1), 150.0)
    leaves = (rng.random(count) < PLANTED.churners) & (number > 0)  # customer 0 is the largest: stays
    churn_at = local_time(rng, rng.integers(100, 360, count), 9, 20)
    return Traits(
        number=number,
        age_band=rng.choice(len(AGE_BANDS), count, p=[0.12, 0.20, 0.30, 0.22, 0.16]),
        gender=rng.choice(len(GENDERS), count, p=[0.49, 0.49, 0.02]),
        region=rng.choice(len(REGIONS), count, p=[0.35, 0.25, 0.20, 0.10, 0.10]),
        contract_type=rng.choice(len(CONTRACT_TYPES), count, p=[0.3, 0.3, 0.4]),
        contract_days=rng.integers(60, 1500, count),
        plan=rng.choice(len(PLANS), count, p=[0.5, 0.35, 0.15]),
        parent=rng.random(count) < PLANTED.parents,
        reluctant=rng.random(count) < PLANTED.reluctant,
        churn_at=np.where(leaves, churn_at, NEVER),
        decoy=~leaves & (rng.random(count) < PLANTED.decoys),
        activity=np.where(heavy, pareto, np.exp(0.5 * rng.standard_normal(count))),
    )


def draw_queries(rng: np.random.Generator, traits: Traits) -> Queries:
    """Draw the waves: what went before each query, the biased selection, the random arm, the outcome."""
    shape = (len(traits.number), PLANTED.waves)
    first = PLANTED.wave_first_day + PLANTED.wave_every_days * np.arange(PLANTED.waves)
    at = local_time(rng, first + rng.integers(0, PLANTED.wave_jitter_days, shape), 10, 19)
    state = rng.choice(len(STATES), shape, p=PLANTED.state_shares)
    live = at < traits.churn_at[:, None]
    parent, reluctant = traits.parent[:, None], traits.reluctant[:, None]

    need = (state == BROWSE_LAST) | (state == SILENT)
    p_select = sigmoid(
        PLANTED.select_base_logit
        + PLANTED.select_need_logit * need
        + PLANTED.select_lisboa_logit * (traits.region == 0)[:, None]
        + PLANTED.select_age_65_logit * (traits.age_band == len(AGE_BANDS) - 1)[:, None]
    )
    selected = live & (rng.random(shape) < p_select)
    treated = selected & (rng.random(shape) >= PLANTED.control_share)
    offer = rng.integers(0, len(OFFERS), shape)

    untouched, convinced, p_answer = chances(state, parent, reluctant, offer == FAMILY)
    # Who is about to leave orders nothing, called or not.
    stays = live & (traits.churn_at[:, None] >= at + PLANTED.horizon_days * DAY)
    p_control, p_answered = untouched * stays, convinced * stays
    answered = treated & (rng.random(shape) < p_answer)
    ordered = rng.random(shape) < np.where(answered, p_answered, p_control)
    # Well within the horizon, whatever the hour of the query.
    later = local_time(rng, at // DAY + rng.integers(1, PLANTED.horizon_days - 1, shape), 9, 21)
    return Queries(
        at=at,
        state=state,
        live=live,
        p_select=p_select,
        selected=selected,
        treated=treated,
        offer=offer,
        answered=answered,
        p_control=p_control,
        p_treated=p_answer * p_answered + (1 - p_answer) * p_control,
        ordered_at=np.where(ordered, later, NEVER),
    )


def chances(state: Array, parent: Array, reluctant: Array, family: Array) -> tuple[Array, Array, Array]:
    """What is planted: the probability of an upgrade by one who stays, and that a call is answered.

    Args:
        state: position in `STATES`.
        parent, reluctant: traits.
        family: whether the offer is the family plan.

    Returns:
        The probability without an answered call, with one, and that of an answer; shapes broadcast.
    """
    logit = PLANTED.base_logit + np.asarray(PLANTED.state_logits)[state]
    effect = (
        PLANTED.effect_logit
        + PLANTED.effect_parent_logit * parent
        + PLANTED.effect_family_offer_parent_logit * (parent & family)
        + PLANTED.effect_reluctant_logit * reluctant
    )
    answer = PLANTED.answer + PLANTED.answer_parent * parent + PLANTED.answer_reluctant * reluctant
    return sigmoid(logit), sigmoid(logit + effect), answer


def local_time(rng: np.random.Generator, day: Array, first_hour: float, last_hour: float) -> Array:
    """A time on each day (after `START`) between two hours of Lisbon's clock."""
    hour = rng.uniform(first_hour, last_hour, np.shape(day))
    summer = (day >= _SUMMER_DAYS[0]) & (day < _SUMMER_DAYS[1])
    return np.asarray(day * DAY + ((hour - summer) * 3600).astype(np.int64))
