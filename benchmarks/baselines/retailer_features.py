"""Calendar queries about the retailer's households: daily aggregates, query rows, hand-made features, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.baselines.complete_journey import (
    TEST_START,
    WINDOWS,
    YEAR,
    demographics,
    periods,
    purchases,
    raw,
    top_categories,
)

Array = npt.NDArray[Any]
HORIZON, ACTIVE = 28, 91
# Days between two queries in the test period.
STEP = 28
# Columns of the daily cube before the categories.
TOTALS = ("visits", "lines", "spend", "discount", "coupons")
# Days since something that never happened.
_NEVER = 400


def daily_purchases() -> tuple[pd.DataFrame, Array, list[str]]:
    """Households, the daily cube (households, days, K), and the names of its K columns (`TOTALS`, categories)."""
    lines = purchases()
    lines["day"] = (lines.time.dt.normalize() - YEAR).dt.days
    households = np.sort(lines.household_id.unique())
    lines["row"] = np.searchsorted(households, lines.household_id)
    categories = top_categories(lines)
    # Local days before the year (New Year's Eve) count as day 0.
    lines["day"] = lines.day.clip(lower=0)
    columns = [*TOTALS, *categories]
    cube = np.zeros((len(households), int(lines.day.max()) + 1, len(columns)))
    index = (lines.row.to_numpy(), lines.day.to_numpy())
    np.add.at(cube[..., 1], index, 1)
    np.add.at(cube[..., 2], index, lines.sales_value)
    np.add.at(cube[..., 3], index, lines.retail_disc)
    np.add.at(cube[..., 4], index, lines.coupon_disc > 0)
    visits = lines.drop_duplicates("basket_id")
    np.add.at(cube[..., 0], (visits.row.to_numpy(), visits.day.to_numpy()), 1)
    for number, name in enumerate(categories, len(TOTALS)):
        own = lines[lines.product_category == name]
        np.add.at(cube[..., number], (own.row.to_numpy(), own.day.to_numpy()), 1)
    return pd.DataFrame({"household_id": households}), cube, columns


def calendar_queries(cube: Array, step: int) -> pd.DataFrame:
    """Grain: a query (`row` of the household, `day`), with its `period`.

    Active households every `step` days before the test period, and every `STEP` days in it.
    """
    year = 13 * STEP
    offsets = [k for k in range(-year, year, step) if k < 0 or k % STEP == 0]
    days = pd.Series([TEST_START + pd.Timedelta(days=k) for k in offsets])
    queries = []
    for day, period in zip(days, periods(days, days + pd.Timedelta(days=HORIZON)), strict=True):
        number = (day - YEAR).days
        if period != "unused":
            active = cube[:, max(0, number - ACTIVE) : number, 1].sum(axis=1) > 0
            queries += [(row, number, period) for row in np.flatnonzero(active)]
    return pd.DataFrame(queries, columns=["row", "day", "period"])


def daily_marketing(households: Array, days: int) -> tuple[Array, list[str]]:
    """Cube (households, days, K) of marketing, and its columns.

    Columns: redemptions; per campaign type the campaigns that began, and those that ended the day before.
    """
    sent = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    redeemed = raw("coupon_redemptions")
    types = sorted(sent.campaign_type.unique())
    columns = ["redemptions", *(f"{event}_{kind}" for kind in types for event in ("contacts", "ended"))]
    cube = np.zeros((len(households), days, len(columns)))

    def count(column: str, rows: pd.DataFrame, dates: pd.Series) -> None:
        # Dates before the year count on its first day, begin and end alike.
        day = (dates - YEAR).dt.days.clip(lower=0).to_numpy()
        known = rows.household_id.isin(households).to_numpy() & (day < days)
        row = np.searchsorted(households, rows.household_id.to_numpy()[known])
        np.add.at(cube[..., columns.index(column)], (row, day[known]), 1)

    count("redemptions", redeemed, redeemed.redemption_date)
    for kind in types:
        own = sent[sent.campaign_type == kind]
        count(f"contacts_{kind}", own, own.start_date)
        count(f"ended_{kind}", own, own.end_date + pd.Timedelta(days=1))
    return cube, columns


def running_sums(cube: Array) -> Array:
    """(households, days + 1, K): sums over the days before each day."""
    return np.concatenate([np.zeros((len(cube), 1, cube.shape[2])), cube.cumsum(axis=1)], axis=1)


def calendar_features(
    queries: pd.DataFrame, cube: Array, columns: list[str], households: pd.DataFrame
) -> pd.DataFrame:
    """Features before each query: purchases, marketing and demographics; `attrs["categories"]` names the categories."""
    keys = households.household_id.to_numpy()
    row, day = queries.row.to_numpy(), queries.day.to_numpy()
    marketing, marketing_columns = daily_marketing(keys, cube.shape[1])
    purchase_sums, marketing_sums = running_sums(cube), running_sums(marketing)
    table: dict[str, Array] = {}
    for window in WINDOWS:
        since = np.maximum(0, day - window)
        table |= purchase_window(purchase_sums[row, day] - purchase_sums[row, since], columns, window)
        lately = marketing_sums[row, day] - marketing_sums[row, since]
        table |= {
            f"{name}_{window}": lately[:, number]
            for number, name in enumerate(marketing_columns)
            if not name.startswith("ended_")
        }
    table |= weekday_shares(row, day, cube[..., :1], purchase_sums)
    table |= campaigns_under_way(marketing_sums[row, day], marketing_columns)
    table["days_since_redeemed"] = day - last_day(marketing[..., 0] > 0)[row, day - 1]
    bought = cube[..., 1] > 0
    table |= visit_recency(row, day, bought)
    table["trend"] = table["spend_28"] * 91 / 28 / (table["spend_91"] + 1)
    table["weeks_with_a_visit"] = weeks_with_visit(row, day, bought)
    features = pd.concat([pd.DataFrame(table), demographics(pd.Series(keys[row]))], axis=1)
    features.attrs["categories"] = columns[len(TOTALS) :]
    return features


def purchase_window(sums: Array, columns: list[str], window: int) -> dict[str, Array]:
    """Features of the sums (n, K) over a window of days: sums, spend a visit, category shares."""
    table = {f"{name}_{window}": sums[:, number] for number, name in enumerate(columns)}
    table[f"spend_a_visit_{window}"] = sums[:, 2] / np.maximum(sums[:, 0], 1)
    if window >= ACTIVE:  # in a few days shares say the same as counts
        table |= {
            f"share_{name}_{window}": sums[:, number] / np.maximum(sums[:, 1], 1)
            for number, name in enumerate(columns)
            if number >= len(TOTALS)
        }
    return table


def weekday_shares(row: Array, day: Array, visits: Array, sums: Array) -> dict[str, Array]:
    """Share of the visits on each weekday; `visits` is (households, days, 1)."""
    weekday = (YEAR.weekday() + np.arange(visits.shape[1])) % 7
    table = {}
    for number in range(7):
        own = running_sums(visits * (weekday == number)[None, :, None])[row, day, 0]
        table[f"visits_on_weekday_{number}"] = own / np.maximum(sums[row, day, 0], 1)
    return table


def campaigns_under_way(sums: Array, columns: list[str]) -> dict[str, Array]:
    """Campaigns of each type that began and have not ended; `sums` is (n, K)."""
    return {
        # The next column counts the campaigns of this type that ended.
        f"under_way_{name}": sums[:, number] - sums[:, number + 1]
        for number, name in enumerate(columns)
        if name.startswith("contacts_")
    }


def visit_recency(row: Array, day: Array, bought: Array) -> dict[str, Array]:
    """Days since the last and the first visit, longest and median gap between visits."""
    first = np.where(bought.any(axis=1), bought.argmax(axis=1), _NEVER)
    gaps = [np.diff(np.flatnonzero(bought[r, :d])) for r, d in zip(row, day, strict=True)]
    return {
        "days_since_visit": day - last_day(bought)[row, day - 1],
        "days_known": day - first[row],
        "longest_gap": np.array([g.max() if len(g) else _NEVER for g in gaps]),
        "usual_gap": np.array([np.median(g) if len(g) else _NEVER for g in gaps]),
    }


def weeks_with_visit(row: Array, day: Array, bought: Array) -> Array:
    """Weeks of the year with a visit in the last `ACTIVE` days."""
    weeks = [
        len(np.unique(np.flatnonzero(bought[r, max(0, d - ACTIVE) : d]) // 7))
        for r, d in zip(row, day, strict=True)
    ]
    return np.array(weeks)


def last_day(happened: Array) -> Array:
    """(households, days): the last day, up to and including each day, on which something happened."""
    return np.maximum.accumulate(np.where(happened, np.arange(happened.shape[1]), -_NEVER), axis=1)


def labels(queries: pd.DataFrame, cube: Array) -> dict[str, Array]:
    """What followed each query within the horizon: `lapse` (n,), `spend` (n,), `categories` (n, K)."""
    sums = running_sums(cube)
    row, day = queries.row.to_numpy(), queries.day.to_numpy()
    after = sums[row, day + HORIZON] - sums[row, day]
    return {
        "lapse": (after[:, 1] == 0).astype(float),
        "spend": after[:, 2],
        "categories": (after[:, len(TOTALS) :] > 0).astype(float),
    }
