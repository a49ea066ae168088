"""Ground truth of the data set: customers, outcome probabilities of each query, and the best possible metrics."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lam_spark.datasets.telecom.consent import PURPOSES, Consent
from lam_spark.datasets.telecom.customers import Array, Queries, Traits, outcome_probabilities
from lam_spark.datasets.telecom.feeds import CHANNELS
from lam_spark.datasets.telecom.identities import Identities, member_numbers
from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    BEHAVIOUR,
    BROWSE_LAST,
    BUY_LAST,
    CONSENT_SHARES,
    CONTRACT_TYPES,
    DAY,
    FAMILY,
    GENDERS,
    IDENTITY,
    NEVER,
    OFFERS,
    PLANS,
    REGIONS,
    START,
    STATES,
)

QUERIES = "queries"  # name of the cell counts among the counts of feeds
_ARMS = (None, "control", "treated")
_START = np.datetime64(START, "us")


def customer_rows(
    traits: Traits, ids: Identities, consent: Consent, resolved_events: Mapping[str, Array]
) -> pa.Table:
    """Build one row per customer; `events_CHANNEL` is the number of events that `ingest` must assign."""
    categories = {
        "age_band": AGE_BANDS,
        "gender": GENDERS,
        "region": REGIONS,
        "contract_type": CONTRACT_TYPES,
        "plan": PLANS,
    }
    columns: dict[str, Any] = {"customer_id": member_numbers(traits.number)}
    columns |= {name: _names(names, getattr(traits, name)) for name, names in categories.items()}
    columns |= {name: getattr(traits, name) for name in ("parent", "reluctant", "decoy", "activity")}
    columns |= {
        "churn_at": _timestamps(traits.churn_at),
        "has_own_device": ids.has_own_device,
        "uses_kiosk": ids.uses_kiosk,
        "consent_history": pa.array(consent.history.tolist(), pa.string()),
    }
    columns |= {f"opted_in_{purpose}": consent.opted_in[purpose] for purpose in PURPOSES}
    columns |= {f"events_{name}": count for name, count in resolved_events.items() if name in CHANNELS}
    return pa.table(columns)


def query_rows(traits: Traits, queries: Queries) -> pa.Table:
    """Build one row per query of a customer who has not cancelled: state, probabilities and outcome."""
    owner, wave = np.nonzero(queries.live)
    values = {f.name: getattr(queries, f.name)[owner, wave] for f in dataclasses.fields(queries)}
    arm = np.array(_ARMS, dtype=object)[values["selected"] * 1 + values["treated"]]
    return pa.table(
        {
            "customer_id": member_numbers(traits.number[owner]),
            "wave": wave,
            "at": _timestamps(values["at"]),
            "state": _names(STATES, values["state"]),
            "p_select": values["p_select"],
            "arm": pa.array(arm.tolist(), pa.string()),
            "offer": _names(OFFERS, values["offer"]),
            "answered": values["answered"],
            "p_control": values["p_control"],
            "p_treated": values["p_treated"],
            "effect": values["p_treated"] - values["p_control"],
            "ordered_at": _timestamps(values["ordered_at"]),
        }
    )


def count_cells(traits: Traits, queries: Queries) -> Counter[tuple[str, str]]:
    """Count selected queries by everything that determines the outcome probability.

    Returns:
        (`QUERIES`, cell) -> queries. A cell is the text "state,parent,reluctant,family offer,stays,treated"; the
        number of cells is bounded for any number of customers.
    """
    owner, wave = np.nonzero(queries.selected)
    stays = traits.churn_at[owner] >= queries.at[owner, wave] + BEHAVIOUR.horizon_days * DAY
    family, treated = queries.offer[owner, wave] == FAMILY, queries.treated[owner, wave]
    columns = (
        queries.state[owner, wave],
        traits.parent[owner],
        traits.reluctant[owner],
        family,
        stays,
        treated,
    )
    cells, counts = np.unique(np.stack(columns, axis=1).astype(int), axis=0, return_counts=True)
    return Counter(
        {
            (QUERIES, ",".join(map(str, cell))): count
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
        }
    )


def best_possible(cells: Mapping[str, int]) -> dict[str, Any]:
    """Compute the metrics of ideal models on the contacts, from the true probabilities of their cells.

    Args:
        cells: cell -> queries, as counted by `count_cells`.

    Returns:
        `treated`, `control`: contacts per arm; `upgrade_share`: expected share of upgrades per arm.
        `auc`: treated customers ranked by their upgrade probability: with full knowledge, without knowing who
        is about to cancel, and additionally without the order of actions.
        `uplift`: upgrades per selected query: the mean effect of calling all, and the Qini area (between the
        gain curve and random order) when ranked by true effect and by upgrade probability.
    """
    keys = np.array([[int(part) for part in cell.split(",")] for cell in cells])
    count = np.array(list(cells.values()), dtype=float)
    state, parent, reluctant, family, stays, treated = keys.T
    p_uncalled, p_called, p_answer = outcome_probabilities(state, parent == 1, reluctant == 1, family == 1)
    p_control = p_uncalled * stays
    p_treated = p_answer * p_called * stays + (1 - p_answer) * p_control
    unordered_state = np.where(state == BUY_LAST, BROWSE_LAST, state)
    scores = {
        "full_knowledge": p_treated,
        "without_churn": _group_mean(p_treated, count, state, parent, reluctant, family),
        "without_order": _group_mean(p_treated, count, unordered_state, parent, reluctant, family),
    }
    weight = count * treated
    labels = np.repeat([1.0, 0.0], len(count))
    weights = np.concatenate([weight * p_treated, weight * (1 - p_treated)])
    effect = _group_mean(p_treated - p_control, count, state, parent, reluctant, family)
    probability = _group_mean(p_treated, count, state, parent, reluctant, family)
    return {
        "treated": int(weight.sum()),
        "control": int((count * (1 - treated)).sum()),
        "upgrade_share": {
            "treated": float((weight * p_treated).sum() / weight.sum()),
            "control": float((count * (1 - treated) * p_control).sum() / (count * (1 - treated)).sum()),
        },
        "auc": {name: _auc(np.tile(score, 2), labels, weights) for name, score in scores.items()},
        "uplift": {
            "of_calling_all": float((count * effect).sum() / count.sum()),
            "qini_by_effect": _qini(effect, effect, count),
            "qini_by_probability": _qini(probability, effect, count),
        },
    }


def ground_truth() -> dict[str, Any]:
    """Return all ground-truth parameters by name."""
    return {
        "behaviour": dataclasses.asdict(BEHAVIOUR),
        "identity": dataclasses.asdict(IDENTITY),
        "consent": CONSENT_SHARES,
        "states": STATES,
        "offers": OFFERS,
    }


def _group_mean(value: Array, count: Array, *keys: Array) -> Array:
    """Replace each value by the weighted mean over all cells with the same keys."""
    _, group = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    return np.asarray((np.bincount(group, value * count) / np.bincount(group, count))[group])


def _auc(score: Array, label: Array, weight: Array) -> float:
    """Area under the ROC curve of weighted rows; ties count half."""
    values, group = np.unique(score, return_inverse=True)
    positive = np.bincount(group, weight * label, len(values))
    negative = np.bincount(group, weight * (1 - label), len(values))
    negative_below = np.cumsum(negative) - negative / 2
    return float((positive * negative_below).sum() / (positive.sum() * negative.sum()))


def _qini(score: Array, effect: Array, count: Array) -> float:
    """Area between the cumulative gain in the order of a score and the straight line of a random order."""
    values, group = np.unique(-score, return_inverse=True)
    share = np.bincount(group, count, len(values)) / count.sum()
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(group, count * effect, len(values))) / count.sum()])
    area = (share * (gain[1:] + gain[:-1]) / 2).sum()
    return float(area - gain[-1] / 2)


def _names(names: tuple[str, ...], position: Array) -> pa.Array:
    return pa.array(np.array(names, dtype=object)[position].tolist(), pa.string())


def _timestamps(at: Array) -> pa.Array:
    """Convert seconds after `START` to UTC timestamps; `NEVER` becomes null."""
    timestamps = _START + (np.where(at < NEVER, at, 0) * 1_000_000).astype("timedelta64[us]")
    return pa.array(timestamps, pa.timestamp("us"), mask=at >= NEVER).cast(pa.timestamp("us", tz="UTC"))
