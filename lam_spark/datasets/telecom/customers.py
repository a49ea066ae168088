"""Customer traits, queries and outcomes, with the true probabilities behind them.

All functions draw one chunk of customers in numpy. Shapes: `n` customers, `w` waves (queries per customer). Times are
seconds after `START`, UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    BEHAVIOUR,
    BROWSE_LAST,
    CONTRACT_TYPES,
    DAY,
    FAMILY,
    GENDERS,
    NEVER,
    OFFERS,
    PLANS,
    REGIONS,
    SILENT,
    STATES,
)

Array = npt.NDArray[Any]

# Lisbon is one hour ahead of UTC from day 90 (31 March) to day 299 (26 October).
_SUMMER_DAYS = (90, 300)


@dataclass(frozen=True)
class Traits:
    """Arrays (n,) of customer traits.

    Attributes:
        number: customer numbers, ascending.
        age_band, gender, region, contract_type, plan: positions in the lists of `parameters`.
        contract_days: days between the start of the contract and `START`.
        parent: whether the customer has small children.
        reluctant: whether a call has a negative effect.
        churn_at: time of the cancellation; `NEVER` for customers who stay.
        decoy: whether the customer shows signs of churn but stays.
        activity: factor on the use of app and web.
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
    """Arrays (n, w) of queries: state, selection, treatment and outcome.

    Attributes:
        at: time of the query.
        state: position in `STATES`.
        live: whether the customer has not cancelled before.
        p_select: probability of selection by the former targeting.
        selected, treated: whether the customer was selected, and called.
        offer: position in `OFFERS`.
        answered: whether the call was answered.
        p_control, p_treated: true probability of an upgrade within the horizon without and with a call about
            the offer; 0 for customers who cancel within the horizon.
        ordered_at: time of the upgrade; `NEVER` if there is none.
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
    """Draw the traits of customers `first` to `first + count - 1`."""
    number = np.arange(first, first + count)
    u = rng.random(count)
    very_active = rng.random(count) < BEHAVIOUR.very_active_share
    pareto = np.minimum(20 * (1 - u) ** (-1 / 1.1), 150.0)
    # Customer 0 has the longest history and must not cancel.
    churns = (rng.random(count) < BEHAVIOUR.churn_share) & (number > 0)
    churn_at = draw_local_times(rng, rng.integers(100, 360, count), 9, 20)
    return Traits(
        number=number,
        age_band=rng.choice(len(AGE_BANDS), count, p=[0.12, 0.20, 0.30, 0.22, 0.16]),
        gender=rng.choice(len(GENDERS), count, p=[0.49, 0.49, 0.02]),
        region=rng.choice(len(REGIONS), count, p=[0.35, 0.25, 0.20, 0.10, 0.10]),
        contract_type=rng.choice(len(CONTRACT_TYPES), count, p=[0.3, 0.3, 0.4]),
        contract_days=rng.integers(60, 1500, count),
        plan=rng.choice(len(PLANS), count, p=[0.5, 0.35, 0.15]),
        parent=rng.random(count) < BEHAVIOUR.parent_share,
        reluctant=rng.random(count) < BEHAVIOUR.reluctant_share,
        churn_at=np.where(churns, churn_at, NEVER),
        decoy=~churns & (rng.random(count) < BEHAVIOUR.decoy_share),
        activity=np.where(very_active, pareto, np.exp(0.5 * rng.standard_normal(count))),
    )


def draw_queries(rng: np.random.Generator, traits: Traits) -> Queries:
    """Draw the queries of all waves: prior behaviour, biased selection, randomised arm and outcome."""
    shape = (len(traits.number), BEHAVIOUR.waves)
    first = BEHAVIOUR.wave_first_day + BEHAVIOUR.wave_every_days * np.arange(BEHAVIOUR.waves)
    at = draw_local_times(rng, first + rng.integers(0, BEHAVIOUR.wave_jitter_days, shape), 10, 19)
    state = rng.choice(len(STATES), shape, p=BEHAVIOUR.state_shares)
    live = at < traits.churn_at[:, None]
    parent, reluctant = traits.parent[:, None], traits.reluctant[:, None]

    need = (state == BROWSE_LAST) | (state == SILENT)
    p_select = _sigmoid(
        BEHAVIOUR.selection_base_logit
        + BEHAVIOUR.selection_need_logit * need
        + BEHAVIOUR.selection_lisboa_logit * (traits.region == 0)[:, None]
        + BEHAVIOUR.selection_age_65_logit * (traits.age_band == len(AGE_BANDS) - 1)[:, None]
    )
    selected = live & (rng.random(shape) < p_select)
    treated = selected & (rng.random(shape) >= BEHAVIOUR.control_share)
    offer = rng.integers(0, len(OFFERS), shape)

    p_uncalled, p_called, p_answer = outcome_probabilities(state, parent, reluctant, offer == FAMILY)
    # Customers who cancel within the horizon order nothing, called or not.
    stays = live & (traits.churn_at[:, None] >= at + BEHAVIOUR.horizon_days * DAY)
    p_control, p_answered = p_uncalled * stays, p_called * stays
    answered = treated & (rng.random(shape) < p_answer)
    ordered = rng.random(shape) < np.where(answered, p_answered, p_control)
    # Stays within the horizon for any hour of the query.
    order_time = draw_local_times(rng, at // DAY + rng.integers(1, BEHAVIOUR.horizon_days - 1, shape), 9, 21)
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
        ordered_at=np.where(ordered, order_time, NEVER),
    )


def outcome_probabilities(
    state: Array, parent: Array, reluctant: Array, family_offer: Array
) -> tuple[Array, Array, Array]:
    """Compute the true probabilities for customers who do not cancel within the horizon.

    Args:
        state: position in `STATES`.
        parent, reluctant: traits.
        family_offer: whether the offer is the family plan.

    Returns:
        Probability of an upgrade without an answered call, with one, and probability that a call is answered.
        Shapes broadcast.
    """
    logit = BEHAVIOUR.base_logit + np.asarray(BEHAVIOUR.state_logits)[state]
    effect = (
        BEHAVIOUR.effect_logit
        + BEHAVIOUR.effect_parent_logit * parent
        + BEHAVIOUR.effect_family_offer_parent_logit * (parent & family_offer)
        + BEHAVIOUR.effect_reluctant_logit * reluctant
    )
    p_answer = (
        BEHAVIOUR.answer_probability
        + BEHAVIOUR.answer_probability_parent * parent
        + BEHAVIOUR.answer_probability_reluctant * reluctant
    )
    return _sigmoid(logit), _sigmoid(logit + effect), p_answer


def draw_local_times(rng: np.random.Generator, day: Array, first_hour: float, last_hour: float) -> Array:
    """Draw one time on each day (days after `START`) between two hours of Lisbon local time."""
    hour = rng.uniform(first_hour, last_hour, np.shape(day))
    summer = (day >= _SUMMER_DAYS[0]) & (day < _SUMMER_DAYS[1])
    return np.asarray(day * DAY + ((hour - summer) * 3600).astype(np.int64))


def _sigmoid(logits: Array) -> Array:
    # The package `model` is imported after `datasets`, so its sigmoid is not available here.
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
