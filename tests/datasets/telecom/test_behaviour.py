"""The drawn events show the behaviour that the ground-truth parameters describe."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lam_spark.datasets.telecom.customers import Queries, Traits
from lam_spark.datasets.telecom.parameters import (
    ACTIVE,
    BEHAVIOUR,
    BROWSE_LAST,
    BUY_LAST,
    DAY,
    NEVER,
    OFFERS,
    SILENT,
    SPAN,
)


def events_before_queries(
    events: dict[str, pd.DataFrame], queries: Queries, state: int, days: float
) -> pd.DataFrame:
    """Events within the given number of days before the queries of a state, one row per event and query."""
    owner, wave = np.nonzero((queries.state == state) & queries.live)
    queried = pd.DataFrame(
        {"owner": owner, "query": np.arange(len(owner)), "query_at": queries.at[owner, wave]}
    )
    every = pd.concat([frame.assign(channel=name) for name, frame in events.items()])
    joined = every.merge(queried, on="owner")
    return joined[
        (joined["at"] < joined["query_at"]) & (joined["at"] >= joined["query_at"] - int(days * DAY))
    ]


def steps(rows: pd.DataFrame) -> pd.Series:
    """Classify events as browse, inquire or buy; NaN for all other events."""
    action, channel = rows["action"], rows["channel"]
    step = pd.Series(np.nan, rows.index, dtype=object)
    step[(action == "plan") & channel.isin(["app", "web"])] = "browse"
    step[((action == "ask") & (channel == "shop")) | ((action == "plan") & (channel == "call_centre"))] = (
        "inquire"
    )
    step[(action == "addon") & (channel == "point_of_sale")] = "buy"
    return step


def test_the_two_triples_have_the_same_actions_in_a_different_order(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    counts, last = {}, {}
    for state in (BROWSE_LAST, BUY_LAST):
        rows = events_before_queries(events, sample[1], state, 18)
        rows = rows.assign(step=steps(rows)).dropna(subset="step").sort_values(["query", "at"])
        query_count = rows["query"].nunique()
        counts[state] = rows["step"].value_counts() / query_count
        last[state] = rows.groupby("query")["step"].last().value_counts(normalize=True)
        assert query_count > 1500
    for step in ("browse", "inquire", "buy"):
        assert counts[BROWSE_LAST][step] >= 1
        assert counts[BROWSE_LAST][step] == pytest.approx(counts[BUY_LAST][step], abs=0.08)
    assert last[BROWSE_LAST]["browse"] > 0.8
    assert last[BUY_LAST]["buy"] > 0.8


def test_silent_customers_have_no_own_events_before_the_query(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    rows = events_before_queries(events, sample[1], SILENT, BEHAVIOUR.silent_days)
    assert set(zip(rows["channel"], rows["action"], strict=True)) <= {("mail", "send")}
    before = {state: events_before_queries(events, sample[1], state, 29) for state in (SILENT, ACTIVE)}
    comparisons = {
        state: (rows["action"] == "compare_plans").sum() / rows["query"].nunique()
        for state, rows in before.items()
    }
    assert comparisons[SILENT] == pytest.approx(comparisons[ACTIVE], rel=0.05)
    assert comparisons[SILENT] >= 4.5


def test_parents_never_visit_a_shop_use_the_app_at_night_and_answer_calls(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, queries = sample
    assert not traits.parent[events["shop"]["owner"]].any()
    answered = [
        queries.answered[group][queries.treated[group]].mean() for group in (traits.parent, ~traits.parent)
    ]
    assert answered[0] > 1.5 * answered[1]
    app = events["app"].assign(night=events["app"]["at"] % DAY >= 20 * 3600)
    by_parents = traits.parent[app["owner"]]
    assert app["night"][by_parents].mean() > 3 * app["night"][~by_parents].mean()


def test_customers_call_more_and_use_less_before_they_cancel(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, _ = sample
    churning = np.flatnonzero(traits.churn_at < NEVER)
    for frame in events.values():
        assert (frame["at"] <= traits.churn_at[frame["owner"]]).all()
        assert frame["at"].between(0, SPAN - 1).all()

    def rate(channel: str, action: str, first: int, last: int) -> float:
        """Events per churning customer and day, from `first` to `last` days before the cancellation."""
        frame = events[channel]
        frame = frame[np.isin(frame["owner"], churning) & (frame["action"] == action)]
        days_left = (traits.churn_at[frame["owner"]] - frame["at"]) / DAY
        return float(((days_left >= last) & (days_left < first)).sum() / len(churning) / (first - last))

    assert rate("call_centre", "technical", 30, 0) > 5 * rate("call_centre", "technical", 95, 60)
    assert rate("web", "cancel_info", 30, 0) > 10 * rate("web", "cancel_info", 95, 60)
    assert rate("app", "usage", 28, 0) < 0.5 * rate("app", "usage", 95, 60)
    cancelled = events["point_of_sale"][events["point_of_sale"]["action"] == "cancel"]
    assert sorted(cancelled["owner"]) == churning.tolist()


def test_decoys_view_the_cancel_page_and_stay(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    traits, _ = sample
    views = events["web"].loc[events["web"]["action"] == "cancel_info", "owner"].value_counts()
    views = views.reindex(range(len(traits.number)), fill_value=0)
    stays = traits.churn_at == NEVER
    assert views[traits.decoy].mean() > 3 * views[stays & ~traits.decoy].mean()


def test_contacts_calls_and_upgrades_match_the_queries(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    _, queries = sample
    contacts = events["telemarketing"]
    assert len(contacts) == queries.selected.sum()
    assert (contacts["item"] == "treated").sum() == queries.treated.sum()
    assert set(contacts["action"]) == set(OFFERS)
    outbound = events["call_centre"][events["call_centre"]["action"] == "outbound"]
    assert len(outbound) == queries.treated.sum()
    assert (outbound["item"] == "yes").sum() == queries.answered.sum()
    assert (events["point_of_sale"]["action"] == "upgrade").sum() == (queries.ordered_at < NEVER).sum()


def test_customer_0_has_the_longest_history(
    sample: tuple[Traits, Queries], events: dict[str, pd.DataFrame]
) -> None:
    everyone = range(len(sample[0].number))
    counts = sum(frame["owner"].value_counts().reindex(everyone, fill_value=0) for frame in events.values())
    assert counts.idxmax() == 0
    assert counts[0] > 4_500
