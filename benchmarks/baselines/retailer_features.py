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
    table = purchase_features(row, day, cube, columns)
    table |= marketing_features(row, day, *daily_marketing(keys, cube.shape[1]))
    table |= recency_features(row, day, cube[..., 1] > 0)
    table["trend"] = table["spend_28"] * 91 / 28 / (table["spend_91"] + 1)
    features = pd.concat([pd.DataFrame(table), demographics(pd.Series(keys[row]))], axis=1)
    features.attrs["categories"] = columns[len(TOTALS) :]
    return features


def purchase_features(row: Array, day: Array, cube: Array, columns: list[str]) -> dict[str, Array]:
    """Sums, spend a visit and category shares by window; shares of visits by weekday."""
    sums = running_sums(cube)
    weekday = (YEAR.weekday() + np.arange(cube.shape[1])) % 7
    table: dict[str, Array] = {}
    for window in WINDOWS:
        inside = sums[row, day] - sums[row, np.maximum(0, day - window)]
        table |= {f"{name}_{window}": inside[:, number] for number, name in enumerate(columns)}
        table[f"spend_a_visit_{window}"] = inside[:, 2] / np.maximum(inside[:, 0], 1)
        if window >= ACTIVE:  # in a few days shares say the same as counts
            table |= {
                f"share_{name}_{window}": inside[:, number] / np.maximum(inside[:, 1], 1)
                for number, name in enumerate(columns)
                if number >= len(TOTALS)
            }
    for number in range(7):
        visits = running_sums(cube[..., :1] * (weekday == number)[None, :, None])[row, day, 0]
        table[f"visits_on_weekday_{number}"] = visits / np.maximum(sums[row, day, 0], 1)
    return table


def marketing_features(row: Array, day: Array, marketing: Array, columns: list[str]) -> dict[str, Array]:
    """Redemptions and contacts by window, campaigns under way, days since the last redemption."""
    sums = running_sums(marketing)
    table: dict[str, Array] = {}
    for window in WINDOWS:
        inside = sums[row, day] - sums[row, np.maximum(0, day - window)]
        table |= {
            f"{name}_{window}": inside[:, number]
            for number, name in enumerate(columns)
            if not name.startswith("ended_")
        }
    for number, name in enumerate(columns):
        if name.startswith("contacts_"):
            # The column after it counts the campaigns of this type that ended.
            table[f"under_way_{name}"] = sums[row, day, number] - sums[row, day, number + 1]
    table["days_since_redeemed"] = day - last_day(marketing[..., 0] > 0)[row, day - 1]
    return table


def recency_features(row: Array, day: Array, bought: Array) -> dict[str, Array]:
    """Days since the last and the first visit, gaps between visits, weeks with a visit."""
    first = np.where(bought.any(axis=1), bought.argmax(axis=1), _NEVER)
    gaps = [np.diff(np.flatnonzero(bought[r, :d])) for r, d in zip(row, day, strict=True)]
    weeks = [
        len(np.unique(np.flatnonzero(bought[r, max(0, d - ACTIVE) : d]) // 7))
        for r, d in zip(row, day, strict=True)
    ]
    return {
        "days_since_visit": day - last_day(bought)[row, day - 1],
        "days_known": day - first[row],
        "longest_gap": np.array([g.max() if len(g) else _NEVER for g in gaps]),
        "usual_gap": np.array([np.median(g) if len(g) else _NEVER for g in gaps]),
        "weeks_with_a_visit": np.array(weeks),
    }


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
