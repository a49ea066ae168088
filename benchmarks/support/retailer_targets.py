"""Configuration overrides that add the three calendar targets to the retailer's coupon target."""

from __future__ import annotations

# Days between two calendar queries of the model's training.
WEEK = 7
_PURCHASE = "\"action = 'purchase'\""
_CALENDAR = (
    f"every_days: {WEEK}, active: {_PURCHASE}, active_days: 91, outcome_filter: {_PURCHASE}, "
    f"horizon_days: '28', baseline_filter: {_PURCHASE}"
)
RETAILER_TARGETS = (
    "targets.lapse={description: buys nothing for four weeks, negate: true, baseline: -count(*), "
    f"{_CALENDAR}}}",
    "targets.spend={description: spends in four weeks, kind: value, value: sum(outcome.sales_value), "
    f"{_CALENDAR}}}",
    f"targets.categories={{description: buys in four weeks, kind: next, field: item, top_k: 64, {_CALENDAR}}}",
    "snapshot.queries_per_block=64",
)
