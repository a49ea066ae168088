"""What the telecom world plants can be measured in what it draws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lam_spark.datasets.telecom.behaviour import draw_events
from lam_spark.datasets.telecom.customers import Array, Queries, Traits, draw_queries, draw_traits
from lam_spark.datasets.telecom.parameters import (
    BROWSE_LAST,
    BROWSE_LAST_NOT,
    DAY,
    FAMILY,
    GOES_ON,
    NEVER,
    NONE,
    OFFERS,
    PLANTED,
    SILENT,
    SPAN,
    World,
    largest_customer_events,
)
from lam_spark.datasets.telecom.truth import best_possible, count_cells
from lam_spark.model.metrics import auc

MANY, SOME = 40_000, 3_000


@pytest.fixture(scope="module")
def traits() -> Traits:
    return draw_traits(np.random.default_rng(5), 0, MANY)


@pytest.fixture(scope="module")
def queries(traits: Traits) -> Queries:
    return draw_queries(np.random.default_rng(6), traits)


@pytest.fixture(scope="module")
def few() -> tuple[Traits, Queries]:
    drawn = draw_traits(np.random.default_rng(7), 0, SOME)
    return drawn, draw_queries(np.random.default_rng(8), drawn)


@pytest.fixture(scope="module")
def events(few: tuple[Traits, Queries]) -> dict[str, pd.DataFrame]:
    return draw_events(np.random.default_rng(9), *few, largest=5_000, app_is_own=np.ones(SOME, dtype=bool))


def close(seen: Array, p: Array | float) -> bool:
    """Whether the mean of drawn yes-or-noes is that of their probabilities, within 4 standard errors."""
    wanted = np.broadcast_to(p, seen.shape)
    error = np.sqrt((wanted * (1 - wanted)).sum()) / seen.size
    return bool(abs(seen.mean() - wanted.mean()) < 4 * error)


def before(events: dict[str, pd.DataFrame], queries: Queries, state: int, days: float) -> pd.DataFrame:
    """Everyone's events in so many days before their queries of a state, one row an event and query."""
    owner, wave = np.nonzero((queries.state == state) & queries.live)
    asked = pd.DataFrame({"owner": owner, "query": np.arange(len(owner)), "asked": queries.at[owner, wave]})
    everything = pd.concat([frame.assign(channel=name) for name, frame in events.items()])
    near = everything.merge(asked, on="owner")
    return near[(near["at"] < near["asked"]) & (near["at"] >= near["asked"] - int(days * DAY))]


def steps(rows: pd.DataFrame) -> pd.Series:
    """What each event is of browse, inquire and buy; NaN for anything else."""
    word, channel = rows["word"], rows["channel"]
    step = pd.Series(np.nan, rows.index, dtype=object)
    step[(word == "plan") & channel.isin(["app", "web"])] = "browse"
    step[((word == "ask") & (channel == "shop")) | ((word == "plan") & (channel == "call_centre"))] = (
        "inquire"
    )
    step[(word == "addon") & (channel == "point_of_sale")] = "buy"
    return step


def test_customers_have_the_traits_that_are_planted(traits: Traits, queries: Queries) -> None:
    assert close(traits.parent, PLANTED.parents)
    assert close(traits.reluctant, PLANTED.reluctant)
    assert close(traits.churn_at < NEVER, PLANTED.churners)
    assert close(traits.decoy[traits.churn_at == NEVER], PLANTED.decoys)
    assert not (traits.decoy & (traits.churn_at < NEVER)).any()
    for state, share in enumerate(PLANTED.state_shares):
        assert close(queries.state == state, share)


def test_a_state_means_what_is_planted_of_the_want(traits: Traits, queries: Queries) -> None:
    untouched = queries.live & ~queries.answered
    for state in range(len(PLANTED.state_shares)):
        chosen = untouched & (queries.state == state)
        assert close((queries.ordered_at < NEVER)[chosen], queries.p_control[chosen])
    stays = traits.churn_at == NEVER
    rate = [queries.p_control[stays][queries.state[stays] == state].mean() for state in range(5)]
    assert rate[BROWSE_LAST] > 4 * rate[BROWSE_LAST_NOT] > 4 * rate[NONE]
    assert rate[SILENT] > 4 * rate[GOES_ON]


def test_a_call_has_the_effect_that_is_planted_of_each_kind_of_customer(
    traits: Traits, queries: Queries
) -> None:
    """The control arm tells: the difference of the arms is the mean of the true effects."""
    ordered, wave = queries.ordered_at < NEVER, np.ones((1, PLANTED.waves), dtype=bool)
    parent, reluctant = traits.parent[:, None] & wave, traits.reluctant[:, None] & wave
    effects = {}
    for name, chosen in {
        "parents": parent & ~reluctant,
        "parents offered the family plan": parent & ~reluctant & (queries.offer == FAMILY),
        "reluctant": reluctant & ~parent,
        "others": ~parent & ~reluctant,
    }.items():
        called, left = chosen & queries.treated, chosen & queries.selected & ~queries.treated
        assert close(ordered[called], queries.p_treated[called])
        assert close(ordered[left], queries.p_control[left])
        effects[name] = (queries.p_treated - queries.p_control)[chosen & queries.selected].mean()
    assert effects["parents offered the family plan"] > effects["parents"] > effects["others"] > 0.01
    assert effects["reluctant"] < -0.005


def test_the_arm_is_drawn_by_chance_among_the_selected_alone(traits: Traits, queries: Queries) -> None:
    assert not (queries.treated & ~queries.selected).any()
    for group in (traits.parent, traits.reluctant, traits.region == 0, traits.age_band == 4):
        assert close(queries.treated[group][queries.selected[group]], 1 - PLANTED.control_share)


def test_the_old_targeting_looked_at_region_and_age_beside_the_need(traits: Traits, queries: Queries) -> None:
    assert close(queries.selected[queries.live], queries.p_select[queries.live])
    selected = [queries.selected[group].mean() for group in (traits.region == 0, traits.region != 0)]
    assert selected[0] > 1.3 * selected[1]
    assert queries.selected[traits.age_band == 4].mean() < 0.7 * queries.selected[traits.age_band != 4].mean()
    needy = np.isin(queries.state, [BROWSE_LAST, SILENT]) & queries.live
    assert queries.selected[needy].mean() > 1.3 * queries.selected[queries.live & ~needy].mean()


def test_an_upgrade_follows_its_query_within_the_horizon(traits: Traits, queries: Queries) -> None:
    ordered = queries.ordered_at < NEVER
    wait = (queries.ordered_at - queries.at)[ordered]
    assert wait.min() > 3600
    assert wait.max() < (PLANTED.horizon_days - 1) * DAY
    assert (queries.ordered_at < traits.churn_at[:, None])[ordered].all()


def test_the_two_triples_hold_the_same_actions_in_another_order(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    counts, last = {}, {}
    for state in (BROWSE_LAST, BROWSE_LAST_NOT):
        near = before(events, few[1], state, 18)
        near = near.assign(step=steps(near)).dropna(subset="step").sort_values(["query", "at"])
        queries = near["query"].nunique()
        counts[state] = near["step"].value_counts() / queries
        last[state] = near.groupby("query")["step"].last().value_counts(normalize=True)
        assert queries > 1500
    for step in ("browse", "inquire", "buy"):
        assert counts[BROWSE_LAST][step] >= 1
        assert counts[BROWSE_LAST][step] == pytest.approx(counts[BROWSE_LAST_NOT][step], abs=0.08)
    assert last[BROWSE_LAST]["browse"] > 0.8
    assert last[BROWSE_LAST_NOT]["buy"] > 0.8


def test_who_compares_and_falls_silent_does_nothing_before_the_query(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    near = before(events, few[1], SILENT, PLANTED.silent_days)
    assert set(zip(near["channel"], near["word"], strict=True)) <= {("mail", "send")}
    compared = {s: before(events, few[1], s, 29) for s in (SILENT, GOES_ON)}
    per_query = {
        s: (rows["word"] == "compare_plans").sum() / rows["query"].nunique() for s, rows in compared.items()
    }
    assert per_query[SILENT] == pytest.approx(per_query[GOES_ON], rel=0.05)
    assert per_query[SILENT] >= 4.5


def test_parents_are_never_in_a_shop_and_answer_calls(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, queries = few
    assert not traits.parent[events["shop"]["owner"]].any()
    answers = [
        queries.answered[group][queries.treated[group]].mean() for group in (traits.parent, ~traits.parent)
    ]
    assert answers[0] > 1.5 * answers[1]
    night = events["app"].assign(night=events["app"]["at"] % DAY >= 20 * 3600)
    by_parents = traits.parent[night["owner"]]
    assert night["night"][by_parents].mean() > 3 * night["night"][~by_parents].mean()


def test_who_leaves_calls_more_and_uses_less_before(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, _ = few
    leaves = np.flatnonzero(traits.churn_at < NEVER)
    for frame in events.values():
        assert (frame["at"] <= traits.churn_at[frame["owner"]]).all()
        assert frame["at"].between(0, SPAN - 1).all()

    def rate(channel: str, word: str, first: int, last: int) -> float:
        """Events a leaver and day, from `first` to `last` days before the end."""
        frame = events[channel][np.isin(events[channel]["owner"], leaves) & (events[channel]["word"] == word)]
        left = (traits.churn_at[frame["owner"]] - frame["at"]) / DAY
        return float(((left >= last) & (left < first)).sum() / len(leaves) / (first - last))

    assert rate("call_centre", "technical", 30, 0) > 5 * rate("call_centre", "technical", 95, 60)
    assert rate("web", "cancel_info", 30, 0) > 10 * rate("web", "cancel_info", 95, 60)
    assert rate("app", "usage", 28, 0) < 0.5 * rate("app", "usage", 95, 60)
    cancelled = events["point_of_sale"][events["point_of_sale"]["word"] == "cancel"]
    assert sorted(cancelled["owner"]) == leaves.tolist()


def test_decoys_look_at_the_cancel_page_and_stay(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, _ = few
    looks = events["web"].loc[events["web"]["word"] == "cancel_info", "owner"].value_counts()
    looked = looks.reindex(range(SOME), fill_value=0)
    stays = traits.churn_at == NEVER
    assert looked[traits.decoy].mean() > 3 * looked[stays & ~traits.decoy].mean()


def test_the_log_of_contacts_is_that_of_the_queries(
    few: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    _, queries = few
    contacts = events["telemarketing"]
    assert len(contacts) == queries.selected.sum()
    assert (contacts["item"] == "treated").sum() == queries.treated.sum()
    assert set(contacts["word"]) == set(OFFERS)
    outbound = events["call_centre"][events["call_centre"]["word"] == "outbound"]
    assert len(outbound) == queries.treated.sum()
    assert (outbound["item"] == "yes").sum() == queries.answered.sum()
    assert (events["point_of_sale"]["word"] == "upgrade").sum() == (queries.ordered_at < NEVER).sum()


def test_customer_0_has_far_more_events_than_anyone(events: dict[str, pd.DataFrame]) -> None:
    counts = sum(
        frame["owner"].value_counts().reindex(range(SOME), fill_value=0) for frame in events.values()
    )
    assert counts.idxmax() == 0
    assert counts[0] > 4_500
    assert largest_customer_events(10_000_000) == largest_customer_events(1_000_000) == 1_000_000


def test_the_best_possible_ranking_is_that_of_the_true_chances(traits: Traits, queries: Queries) -> None:
    cells = {cell: count for (_, cell), count in count_cells(traits, queries).items()}
    best = best_possible(cells)
    p = queries.p_treated[queries.treated]
    expected = auc(np.tile(p, 2), np.repeat([1.0, 0.0], len(p)), np.concatenate([p, 1 - p]))
    assert best["auc"]["knowing_all"] == pytest.approx(expected, abs=1e-9)
    assert best["auc"]["knowing_all"] > best["auc"]["knowing_no_churn"] > best["auc"]["without_order"] + 0.02
    drawn = auc(p, (queries.ordered_at < NEVER)[queries.treated].astype(float))
    assert drawn == pytest.approx(expected, abs=0.01)
    effect = (queries.p_treated - queries.p_control)[queries.selected]
    assert best["gain"]["of_calling_all"] == pytest.approx(effect.mean(), abs=1e-9)
    assert best["gain"]["qini_by_effect"] > best["gain"]["qini_by_chance"] > 0
    assert best["treated"] + best["control"] == queries.selected.sum()


@pytest.mark.parametrize("customers", [100, 501, 1_000, 10_000, 123_456, 10_000_000])
def test_every_customer_is_in_one_chunk_of_one_part(customers: int) -> None:
    world = World(customers, 1, 0.05)
    chunks = [chunk for part in range(world.parts) for chunk in world.chunks(part)]
    assert chunks == list(range(-(-customers // 500)))
    assert len(world.chunks(0)) <= 20
