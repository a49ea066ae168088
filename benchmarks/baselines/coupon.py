"""Baselines of coupon redemption: hand-made features of a contact, a simple ordering, logistic regression, LightGBM."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas as pd

from benchmarks.baselines.boosting import COUPON_LIGHTGBM, Stopwatch, fit_lightgbm, logistic_regression
from benchmarks.baselines.complete_journey import (
    WINDOWS,
    demographics,
    purchases,
    raw,
    top_categories,
    with_category,
)

# Days since something that never happened.
_NEVER = 400


class ContactFeatures:
    """Hand-made features of contacts, from what happened before their day (local time).

    Recency, frequency and money over `WINDOWS`, shares of the commonest categories, coupon history (also of campaigns
    of the same type), campaign type, size of the offer, purchases of the products on offer and of their categories,
    weekdays, demographics.
    """

    def __init__(self) -> None:
        self.lines = purchases()
        self.redemptions = raw("coupon_redemptions")
        descriptions = raw("campaign_descriptions")
        sent = raw("campaigns").merge(descriptions)
        coupons = with_category(raw("coupons")).groupby("campaign_id")
        self.categories = top_categories(self.lines)
        self.type_of = descriptions.set_index("campaign_id").campaign_type
        self.offered_categories = {c: set(group.product_category.dropna()) for c, group in coupons}
        self.offered_products = {c: set(group.product_id) for c, group in coupons}
        self.coupons = coupons.coupon_upc.nunique()
        self.lines_of = {key: rows.sort_values("time") for key, rows in self.lines.groupby("household_id")}
        self.redemptions_of = dict(list(self.redemptions.groupby("household_id")))
        self.sent_to = dict(list(sent.groupby("household_id")))

    def table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Features of each contact, in the order of `rows`."""
        features = pd.DataFrame([self._row(row) for row in rows.itertuples()]).astype(float)
        return pd.concat([features, demographics(rows.household_id).astype(float)], axis=1)

    def _row(self, row: Any) -> dict[str, Any]:
        day = row.start_date
        bought = self.lines_of.get(row.household_id, self.lines.iloc[:0])
        bought = bought[bought.time < day]
        redeemed = self.redemptions_of.get(row.household_id, self.redemptions.iloc[:0])
        redeemed = redeemed[redeemed.redemption_date < day]
        earlier = self.sent_to[row.household_id]
        earlier = earlier[earlier.start_date < day]
        features = self._campaign(row, bought, redeemed, earlier)
        features |= self._windows(row, bought, redeemed)
        shares = bought.product_category.value_counts() / max(len(bought), 1)
        features |= {f"share_{name}": shares.get(name, 0.0) for name in self.categories}
        weekdays = bought.drop_duplicates("basket_id").time.dt.weekday.value_counts(normalize=True)
        features |= {f"visits_on_weekday_{number}": weekdays.get(number, 0.0) for number in range(7)}
        features["trend"] = features["spend_28"] * 365 / 28 / (features["spend_365"] + 1)
        return features

    def _campaign(
        self, row: Any, bought: pd.DataFrame, redeemed: pd.DataFrame, earlier: pd.DataFrame
    ) -> dict[str, Any]:
        day, campaign = row.start_date, row.campaign_id
        same_type = redeemed.campaign_id.map(self.type_of) == row.campaign_type
        campaigns = redeemed.campaign_id.nunique()
        return {
            "redemptions": len(redeemed),
            "campaigns_redeemed": campaigns,
            "contacts": len(earlier),
            "redeem_rate": campaigns / (len(earlier) + 2),
            "days_since_redeemed": (day - redeemed.redemption_date.max()).days if len(redeemed) else _NEVER,
            "days_since_visit": (day - bought.time.max()).days if len(bought) else _NEVER,
            "offer_products": len(self.offered_products[campaign]),
            "offer_coupons": self.coupons[campaign],
            "offer_days": (row.end_date - day).days + 1,
            "offer_categories": len(self.offered_categories[campaign]),
            "weekday": day.weekday(),
            "contacts_of_type": (earlier.campaign_type == row.campaign_type).sum(),
            "campaigns_redeemed_of_type": redeemed.campaign_id[same_type].nunique(),
            **{kind: int(row.campaign_type == kind) for kind in ("Type A", "Type B", "Type C")},
        }

    def _windows(self, row: Any, bought: pd.DataFrame, redeemed: pd.DataFrame) -> dict[str, Any]:
        day, features = row.start_date, dict[str, Any]()
        on_offer = bought.product_id.isin(self.offered_products[row.campaign_id])
        in_category = bought.product_category.isin(self.offered_categories[row.campaign_id])
        for days in WINDOWS:
            recent = bought.time >= day - pd.Timedelta(days=days)
            window = bought[recent]
            features |= {
                f"visits_{days}": window.basket_id.nunique(),
                f"lines_{days}": len(window),
                f"spend_{days}": window.sales_value.sum(),
                f"coupon_discount_{days}": window.coupon_disc.sum(),
                f"coupon_lines_{days}": (window.coupon_disc > 0).sum(),
                f"retail_discount_{days}": window.retail_disc.sum(),
                f"on_offer_lines_{days}": (on_offer & recent).sum(),
                f"on_offer_category_lines_{days}": (in_category & recent).sum(),
                f"stores_{days}": window.store_id.nunique(),
                f"redemptions_{days}": (redeemed.redemption_date >= day - pd.Timedelta(days=days)).sum(),
            }
        features["on_offer_share"] = on_offer.mean() if len(bought) else 0.0
        features["on_offer_category_share"] = in_category.mean() if len(bought) else 0.0
        return features


def coupon_baselines(
    rows: pd.DataFrame, table: pd.DataFrame, seeds: range, stopwatch: Stopwatch
) -> dict[str, np.ndarray]:
    """Test scores of the simple baseline, logistic regression and LightGBM (mean over the seeds)."""
    label = rows.label.to_numpy()
    test = (rows.period == "test").to_numpy()

    def boosting(seed: int) -> np.ndarray:
        settings = COUPON_LIGHTGBM | {"random_state": seed}
        model = fit_lightgbm(lightgbm.LGBMClassifier, settings, table, label, rows.period)
        probabilities: np.ndarray = model.predict_proba(table[test])[:, 1]
        return probabilities

    # The best of a dozen simple orderings on the validation period.
    ties = table.on_offer_lines_365 / (1 + table.on_offer_lines_365.max())
    baseline = (table.campaigns_redeemed + ties)[test].to_numpy()
    runs = [stopwatch("lightgbm_coupon", lambda s=seed: boosting(s)) for seed in seeds]
    return {
        "baseline": baseline,
        "logistic": stopwatch("logistic_coupon", lambda: logistic_regression(table, label, rows.period)),
        "lightgbm": np.mean(runs, axis=0),
    }
