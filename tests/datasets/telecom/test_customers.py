"""Drawn traits, queries and outcomes follow the ground-truth parameters."""

from __future__ import annotations

import numpy as np

from lam_spark.datasets.telecom.customers import Array, Queries, Traits
from lam_spark.datasets.telecom.parameters import (
    ACTIVE,
    BEHAVIOUR,
    BROWSE_LAST,
    BUY_LAST,
    DAY,
    FAMILY,
    NEVER,
    NO_STATE,
    SILENT,
)


def is_close(drawn: Array, p: Array | float) -> bool:
    """Whether the mean of Bernoulli draws is that of their probabilities, within 4 standard errors."""
    expected = np.broadcast_to(p, drawn.shape)
    error = np.sqrt((expected * (1 - expected)).sum()) / drawn.size
    return bool(abs(drawn.mean() - expected.mean()) < 4 * error)


def test_traits_and_states_have_the_configured_shares(traits: Traits, queries: Queries) -> None:
    assert is_close(traits.parent, BEHAVIOUR.parent_share)
    assert is_close(traits.reluctant, BEHAVIOUR.reluctant_share)
    assert is_close(traits.churn_at < NEVER, BEHAVIOUR.churn_share)
    assert is_close(traits.decoy[traits.churn_at == NEVER], BEHAVIOUR.decoy_share)
    assert not (traits.decoy & (traits.churn_at < NEVER)).any()
    for state, share in enumerate(BEHAVIOUR.state_shares):
        assert is_close(queries.state == state, share)


def test_the_state_determines_the_upgrade_probability(traits: Traits, queries: Queries) -> None:
    uncalled = queries.live & ~queries.answered
    for state in range(len(BEHAVIOUR.state_shares)):
        chosen = uncalled & (queries.state == state)
        assert is_close((queries.ordered_at < NEVER)[chosen], queries.p_control[chosen])
    stays = traits.churn_at == NEVER
    rate = [queries.p_control[stays][queries.state[stays] == state].mean() for state in range(5)]
    assert rate[BROWSE_LAST] > 4 * rate[BUY_LAST] > 4 * rate[NO_STATE]
    assert rate[SILENT] > 4 * rate[ACTIVE]


def test_the_difference_between_the_arms_is_the_true_effect_of_each_group(
    traits: Traits, queries: Queries
) -> None:
    ordered, wave = queries.ordered_at < NEVER, np.ones((1, BEHAVIOUR.waves), dtype=bool)
    parent, reluctant = traits.parent[:, None] & wave, traits.reluctant[:, None] & wave
    effects = {}
    for name, chosen in {
        "parents": parent & ~reluctant,
        "parents offered the family plan": parent & ~reluctant & (queries.offer == FAMILY),
        "reluctant": reluctant & ~parent,
        "others": ~parent & ~reluctant,
    }.items():
        treated, control = chosen & queries.treated, chosen & queries.selected & ~queries.treated
        assert is_close(ordered[treated], queries.p_treated[treated])
        assert is_close(ordered[control], queries.p_control[control])
        effects[name] = (queries.p_treated - queries.p_control)[chosen & queries.selected].mean()
    assert effects["parents offered the family plan"] > effects["parents"] > effects["others"] > 0.01
    assert effects["reluctant"] < -0.005


def test_the_arm_is_random_among_the_selected_customers(traits: Traits, queries: Queries) -> None:
    assert not (queries.treated & ~queries.selected).any()
    for group in (traits.parent, traits.reluctant, traits.region == 0, traits.age_band == 4):
        assert is_close(queries.treated[group][queries.selected[group]], 1 - BEHAVIOUR.control_share)


def test_the_former_targeting_depends_on_region_age_and_need(traits: Traits, queries: Queries) -> None:
    assert is_close(queries.selected[queries.live], queries.p_select[queries.live])
    selected = [queries.selected[group].mean() for group in (traits.region == 0, traits.region != 0)]
    assert selected[0] > 1.3 * selected[1]
    assert queries.selected[traits.age_band == 4].mean() < 0.7 * queries.selected[traits.age_band != 4].mean()
    need = np.isin(queries.state, [BROWSE_LAST, SILENT]) & queries.live
    assert queries.selected[need].mean() > 1.3 * queries.selected[queries.live & ~need].mean()


def test_an_upgrade_follows_its_query_within_the_horizon(traits: Traits, queries: Queries) -> None:
    ordered = queries.ordered_at < NEVER
    delay = (queries.ordered_at - queries.at)[ordered]
    assert delay.min() > 3600
    assert delay.max() < (BEHAVIOUR.horizon_days - 1) * DAY
    assert (queries.ordered_at < traits.churn_at[:, None])[ordered].all()
