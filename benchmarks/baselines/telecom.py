"""Gradient boosting on the contacts of the synthetic telecom data: usual features, and two reference limits.

- `features`: counts and days since events, as an analyst without knowledge of the generator makes them.
- `informed_features`: made with knowledge of `lam_spark/datasets/telecom`: the two orders, the silence, who is a
parent,
  who reacts negatively to calls, who is about to leave. From the same events, so they show what a contact's events
  tell.
- `truth_features`: the ground-truth state and traits, plus the informed features of leaving.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import lightgbm
import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.baselines.boosting import LIGHTGBM, fit_lightgbm

Array = npt.NDArray[Any]
WINDOWS = (7, 28, 91, 365)
# Ground-truth columns of a contact; only whether the customer is about to leave is missing.
TRUTH_COLUMNS = ("state", "parent", "reluctant")

# Events that customers cause themselves: no incoming bill, no outgoing call of the operator.
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
    """Events before each contact, as a table with one row per event and contact.

    Args:
        contacts: `customer_key`, `as_of`, `offer` and `arm`.
        events: folder of the events of these customers.
    """

    def __init__(self, contacts: pd.DataFrame, events: Path) -> None:
        self.contacts, self.database = contacts, duckdb.connect()
        self.database.execute("SET TimeZone = 'UTC'; SET threads = 2")
        self.database.register("contacts", contacts[["as_of", "customer_key"]].reset_index(names="row"))
        self.database.execute(
            f"""
            CREATE VIEW events AS
            SELECT * REPLACE (event_time::TIMESTAMP AS event_time, known_at::TIMESTAMP AS known_at)
            FROM read_parquet('{events}/*.parquet');
            CREATE TABLE seen AS
            SELECT row, action, touchpoint, place, subject, item, answered, seconds, amount, {_OWN} AS own,
                   hour(timezone('Europe/Lisbon', event_time AT TIME ZONE 'UTC')) AS hour,
                   date_diff('second', known_at, as_of) / 86400.0 AS ago
            FROM contacts JOIN events USING (customer_key)
            WHERE known_at < as_of
            """
        )

    def features(self) -> tuple[pd.DataFrame, list[str]]:
        """Features of each contact, and the names of those that are counts and traits only."""
        counts, recency = [], []
        for name in ("action", "touchpoint", "place", "subject", "item", "hour"):
            values = self.database.execute(
                f"SELECT DISTINCT {name} FROM seen WHERE {name} IS NOT NULL"
            ).fetchall()
            for value in sorted(value for (value,) in values):
                condition = f"{name} = '{value}'"
                counts += [
                    f'count(*) FILTER ({condition} AND ago <= {days}) AS "{name}_{value}_{days}"'
                    for days in WINDOWS
                ]
                recency.append(f'min(ago) FILTER ({condition}) AS "since_{name}_{value}"')
        for days in WINDOWS:
            counts += [
                f"count(*) FILTER (ago <= {days}) AS events_{days}",
                f"sum(amount) FILTER (ago <= {days}) AS amount_{days}",
                f"sum(seconds) FILTER (ago <= {days}) AS seconds_{days}",
                f"count(*) FILTER (answered = 'yes' AND ago <= {days}) AS answered_{days}",
                f"count(*) FILTER (action = 'be_called' AND answered = 'yes' AND ago <= {days}) AS took_calls_{days}",
            ]
        recency.append("min(ago) AS since_last_event")
        table = self._aggregate(", ".join(counts + recency))
        traits = self.database.execute(
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
        """Features for the ground-truth parameters, as far as events show them."""
        table = self._aggregate(f"{_STATE_AND_TRAITS}, {_LEAVING}")
        browse, inquire, addon = table.since_browse, table.since_inquire, table.since_addon
        table["addon_before_browse"], table["inquire_before_browse"] = addon - browse, inquire - browse
        table["browse_last"] = _in_order(browse, addon, inquire)
        table["browse_first"] = _in_order(addon, inquire, browse)
        table["silent"] = ((table.compared >= 3) & (table.own_late == 0)).astype(int)
        table["night_share"] = (table.app_by_night + 0.1) / (table.app + 0.5)
        table["opened_share"] = (table.opened + 0.1) / (table.received + 0.5)
        return _with_trend(table)

    def truth_features(self, truth: pd.DataFrame) -> pd.DataFrame:
        """Ground-truth state and traits (`TRUTH_COLUMNS`), with the informed features of leaving."""
        table = _with_trend(self._aggregate(_LEAVING))
        for name in TRUTH_COLUMNS:
            table[name] = pd.Categorical(truth[name]).codes
        return table

    def _aggregate(self, select: str) -> pd.DataFrame:
        """Grain: a contact; missing values where it has no event."""
        aggregates = self.database.execute(f"SELECT row, {select} FROM seen GROUP BY row").df()
        table = pd.DataFrame({"row": np.arange(len(self.contacts))}).merge(aggregates, on="row", how="left")
        table["offer"] = pd.Categorical(self.contacts.offer).codes
        table["called"] = (self.contacts.arm == "treated").astype(int).to_numpy()
        return table.drop(columns="row")


def _in_order(last: pd.Series, second: pd.Series, first: pd.Series) -> pd.Series:
    """1 where three actions came in this order with the gaps of the generator's triple; arguments are days since."""
    apart = (last < second) & (second < first)
    return (apart & (last < 6) & (second < 12) & (first < 18)).astype(int)


def _with_trend(table: pd.DataFrame) -> pd.DataFrame:
    """Add recent app use as a share of earlier use, which falls before a customer leaves."""
    before = (table.app_old + 0.5) / (table.known - 55).clip(lower=1)
    return table.assign(app_trend=(table.app_28 + 0.5) / 28 / before)


def predict_both_arms(contacts: pd.DataFrame, table: pd.DataFrame, rows: Array) -> tuple[Array, Array]:
    """LightGBM's order probabilities of the test contacts, treated and not treated.

    Args:
        contacts: with `split` and `label`.
        table: features, a row a contact; `called` is one of them.
        rows: (n,) bool, contacts to fit on; rounds are chosen on the validation period.
    """
    model = fit_lightgbm(
        lightgbm.LGBMClassifier,
        LIGHTGBM | {"random_state": 0},
        table[rows],
        contacts.label.to_numpy()[rows],
        contacts.split[rows],
    )
    test = table[(contacts.split == "test").to_numpy()]
    treated, control = (model.predict_proba(test.assign(called=arm))[:, 1] for arm in (1, 0))
    return treated, control
