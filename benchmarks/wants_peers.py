"""Gradient boosting on the telecom world's contacts: what its users would make, and limits that know the plan.

- `features`: hand-made counts and days since, as people make them who do not know what is parameters.
- `informed_features`: made by somebody who has read `datasets/telecom`: the two orders, the silence, who is a parent,
whom
  calls put off, who is about to leave. From the same events, so it shows what can be known of a contact at all.
- `knowing_features`: of these, what tells that somebody is about to leave; beside it the truth's state and traits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import lightgbm
import numpy as np
import numpy.typing as npt
import pandas as pd
from coupon import boosted
from quality_peers import BOOSTING

Array = npt.NDArray[Any]
WINDOWS = (7, 28, 91, 365)
# Columns of the truth that say all of a contact but whether the customer is about to leave.
PLANTED_STATE = ("state", "parent", "reluctant")

# Who does something of their own accord: no bill that comes in, no call that somebody else makes.
_OWN = "touchpoint IN ('app', 'web', 'shop') OR action IN ('open', 'click', 'inquire', 'call', 'buy')"
_LEAVING = """
    count(*) FILTER (subject = 'technical' AND ago <= 30) AS technical_30,
    count(*) FILTER (subject = 'technical' AND ago <= 60) AS technical_60,
    count(*) FILTER (subject = 'cancel_info' AND ago <= 30) AS cancel_30,
    min(ago) FILTER (subject = 'cancel_info') AS since_cancel,
    count(*) FILTER (touchpoint = 'app' AND ago <= 14) AS app_14,
    count(*) FILTER (touchpoint = 'app' AND ago <= 28) AS app_28,
    count(*) FILTER (touchpoint = 'app' AND ago > 56) AS app_old,
    max(ago) FILTER (action <> 'sign') AS known
"""
_STATE_AND_TRAITS = """
    min(ago) FILTER (action = 'browse') AS since_browse,
    min(ago) FILTER (action = 'inquire') AS since_inquire,
    min(ago) FILTER (action = 'buy' AND item = 'data_pack') AS since_addon,
    count(*) FILTER (action = 'browse' AND ago <= 16) AS browse_16,
    count(*) FILTER (action = 'inquire' AND ago <= 16) AS inquire_16,
    count(*) FILTER (action = 'buy' AND item = 'data_pack' AND ago <= 16) AS addon_16,
    count(*) FILTER (action = 'compare' AND ago BETWEEN 11 AND 29) AS compared,
    count(*) FILTER (action = 'compare' AND ago < 11) AS compared_late,
    min(ago) FILTER (own) AS since_own,
    count(*) FILTER (own AND ago < 11.4) AS own_late,
    count(*) FILTER (own AND ago BETWEEN 11.4 AND 29) AS own_before,
    count(*) FILTER (touchpoint = 'app') AS app,
    count(*) FILTER (touchpoint = 'app' AND hour BETWEEN 7 AND 19) AS app_by_day,
    count(*) FILTER (touchpoint = 'app' AND (hour >= 21 OR hour < 2)) AS app_by_night,
    count(*) FILTER (touchpoint = 'shop') AS shop,
    count(*) FILTER (touchpoint = 'mail' AND action IN ('open', 'click')) AS opened,
    count(*) FILTER (touchpoint = 'mail' AND action = 'receive') AS received,
    count(*) FILTER (subject = 'unwanted_calls') AS complaints,
    count(*) FILTER (action = 'be_called') AS calls,
    count(*) FILTER (action = 'be_called' AND answered = 'yes') AS calls_answered
"""


class Histories:
    """What happened before each contact, as a table of one row an event and contact.

    Args:
        contacts: `customer_key`, `as_of`, `offer` and `arm`.
        events: folder of the events of these customers.
    """

    def __init__(self, contacts: pd.DataFrame, events: Path) -> None:
        self.contacts, self.base = contacts, duckdb.connect()
        self.base.execute("SET TimeZone = 'UTC'; SET threads = 2")
        self.base.register("contacts", contacts[["as_of", "customer_key"]].reset_index(names="row"))
        self.base.execute(
            f"""
            CREATE VIEW events AS SELECT * REPLACE (event_time::TIMESTAMP AS event_time)
            FROM read_parquet('{events}/*.parquet');
            CREATE TABLE seen AS
            SELECT row, action, touchpoint, place, subject, item, answered, seconds, amount, {_OWN} AS own,
                   hour(timezone('Europe/Lisbon', event_time AT TIME ZONE 'UTC')) AS hour,
                   date_diff('second', event_time, as_of) / 86400.0 AS ago
            FROM contacts JOIN events USING (customer_key)
            WHERE event_time < as_of
            """
        )

    def features(self) -> tuple[pd.DataFrame, list[str]]:
        """Hand-made features of each contact; the names of those that are counts and traits only."""
        counted, recent = [], []
        for name in ("action", "touchpoint", "place", "subject", "item", "hour"):
            found = self.base.execute(f"SELECT DISTINCT {name} FROM seen WHERE {name} IS NOT NULL").fetchall()
            for value in sorted(value for (value,) in found):
                is_it = f"{name} = '{value}'"
                counted += [
                    f'count(*) FILTER ({is_it} AND ago <= {days}) AS "{name}_{value}_{days}"'
                    for days in WINDOWS
                ]
                recent.append(f'min(ago) FILTER ({is_it}) AS "since_{name}_{value}"')
        for days in WINDOWS:
            counted += [
                f"count(*) FILTER (ago <= {days}) AS events_{days}",
                f"sum(amount) FILTER (ago <= {days}) AS amount_{days}",
                f"sum(seconds) FILTER (ago <= {days}) AS seconds_{days}",
                f"count(*) FILTER (answered = 'yes' AND ago <= {days}) AS answered_{days}",
                f"count(*) FILTER (action = 'be_called' AND answered = 'yes' AND ago <= {days}) AS took_calls_{days}",
            ]
        recent.append("min(ago) AS since_anything")
        table = self._made(", ".join(counted + recent))
        traits = self.base.execute(
            """
            SELECT row, age_band, gender, region, contract_type
            FROM contacts LEFT JOIN (
                SELECT customer_key, any_value(age_band) AS age_band, any_value(gender) AS gender,
                       any_value(region) AS region, any_value(contract_type) AS contract_type
                FROM events WHERE action = 'sign' GROUP BY customer_key
            ) USING (customer_key) ORDER BY row
            """
        ).df()
        for name in ("age_band", "gender", "region", "contract_type"):
            table[name] = pd.Categorical(traits[name]).codes
        table["weekday"] = self.contacts.as_of.dt.weekday.to_numpy()
        since = [name for name in table if str(name).startswith("since_")]
        return table, [str(name) for name in table if name not in since]

    def informed_features(self) -> pd.DataFrame:
        """Of each contact, what is planted, as far as its events tell."""
        table = self._made(f"{_STATE_AND_TRAITS}, {_LEAVING}")
        browse, inquire, addon = table.since_browse, table.since_inquire, table.since_addon
        table["addon_before_browse"], table["inquire_before_browse"] = addon - browse, inquire - browse
        table["browse_last"] = _in_order(browse, addon, inquire)
        table["browse_first"] = _in_order(addon, inquire, browse)
        table["silent"] = ((table.compared >= 3) & (table.own_late == 0)).astype(int)
        table["night_share"] = (table.app_by_night + 0.1) / (table.app + 0.5)
        table["opened_share"] = (table.opened + 0.1) / (table.received + 0.5)
        return _with_trend(table)

    def knowing_features(self, truth: pd.DataFrame) -> pd.DataFrame:
        """State and traits by the truth file (`PLANTED_STATE`); who is about to leave, as far as the events tell."""
        table = _with_trend(self._made(_LEAVING))
        for name in PLANTED_STATE:
            table[name] = pd.Categorical(truth[name]).codes
        return table

    def _made(self, select: str) -> pd.DataFrame:
        """A row a contact; one without any event has missing values."""
        made = self.base.execute(f"SELECT row, {select} FROM seen GROUP BY row").df()
        table = pd.DataFrame({"row": np.arange(len(self.contacts))}).merge(made, on="row", how="left")
        table["offer"] = pd.Categorical(self.contacts.offer).codes
        table["called"] = (self.contacts.arm == "treated").astype(int).to_numpy()
        return table.drop(columns="row")


def _in_order(last: pd.Series, second: pd.Series, first: pd.Series) -> pd.Series:
    """Days since three acts -> 1 where they came in this order with the gaps that a planted triple has."""
    apart = (last < second) & (second < first)
    return (apart & (last < 6) & (second < 12) & (first < 18)).astype(int)


def _with_trend(table: pd.DataFrame) -> pd.DataFrame:
    """With the app's use of late as a share of that of before: those who leave use it less and less."""
    before = (table.app_old + 0.5) / (table.known - 55).clip(lower=1)
    return table.assign(app_trend=(table.app_28 + 0.5) / 28 / before)


def both_answers(contacts: pd.DataFrame, table: pd.DataFrame, rows: Array) -> tuple[Array, Array]:
    """LightGBM's answers to the test contacts, called and held back; rounds chosen on the validation period.

    Args:
        contacts: with periods and labels.
        table: features, a row a contact; `called` is one of them.
        rows: (n,) bool, contacts to learn from.
    """
    model = boosted(
        lightgbm.LGBMClassifier,
        BOOSTING | {"random_state": 0},
        table[rows],
        contacts.label.to_numpy()[rows],
        contacts.split[rows],
    )
    test = table[(contacts.split == "test").to_numpy()]
    return tuple(model.predict_proba(test.assign(called=arm))[:, 1] for arm in (1, 0))
