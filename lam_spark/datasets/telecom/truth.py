"""What is true of the world: who the customers are, what each query would bring, what is best, what must be counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lam_spark.datasets.telecom import parameters
from lam_spark.datasets.telecom.consent import PURPOSES, Consent
from lam_spark.datasets.telecom.customers import Array, Queries, Traits, chances
from lam_spark.datasets.telecom.feeds import CHANNELS
from lam_spark.datasets.telecom.identities import Identities, member
from lam_spark.datasets.telecom.parameters import (
    AGE_BANDS,
    BROWSE_LAST,
    BROWSE_LAST_NOT,
    CONTRACT_TYPES,
    DAY,
    FAMILY,
    GENDERS,
    NEVER,
    OFFERS,
    PLANS,
    PLANTED,
    REGIONS,
    START,
    STATES,
)
from lam_spark.model.metrics import auc

QUERIES = "queries"  # the name under which cells are counted among feeds
_ARMS = (None, "control", "treated")
_STARTED = np.datetime64(START, "us")
Cell = tuple[int, int, int, int, int, int]  # state, parent, reluctant, family offer, stays, treated


def customer_rows(
    traits: Traits, ids: Identities, consent: Consent, attributed: Mapping[str, Array]
) -> pa.Table:
    """A row a customer; `events_...` are the events that `ingest` must give the customer, a channel each."""
    lists = {
        "age_band": AGE_BANDS,
        "gender": GENDERS,
        "region": REGIONS,
        "contract_type": CONTRACT_TYPES,
        "plan": PLANS,
    }
    told: dict[str, Any] = {"customer_id": member(traits.number)}
    told |= {name: _words(words, getattr(traits, name)) for name, words in lists.items()}
    told |= {name: getattr(traits, name) for name in ("parent", "reluctant", "decoy", "activity")}
    told |= {
        "churn_at": _instants(traits.churn_at),
        "app_is_own": ids.app_is_own,
        "at_kiosk": ids.at_kiosk,
        "stance": pa.array(consent.stance.tolist(), pa.string()),
    }
    told |= {f"agreed_{purpose}": consent.agreed[purpose] for purpose in PURPOSES}
    told |= {f"events_{name}": count for name, count in attributed.items() if name in CHANNELS}
    return pa.table(told)


def query_rows(traits: Traits, queries: Queries) -> pa.Table:
    """A row a query of one who had not left: what was known to the draw, and what came of it."""
    owner, wave = np.nonzero(queries.live)
    held = {f.name: getattr(queries, f.name)[owner, wave] for f in dataclasses.fields(queries)}
    arm = np.array(_ARMS, dtype=object)[held["selected"] * 1 + held["treated"]]
    return pa.table(
        {
            "customer_id": member(traits.number[owner]),
            "wave": wave,
            "at": _instants(held["at"]),
            "state": _words(STATES, held["state"]),
            "p_select": held["p_select"],
            "arm": pa.array(arm.tolist(), pa.string()),
            "offer": _words(OFFERS, held["offer"]),
            "answered": held["answered"],
            "p_control": held["p_control"],
            "p_treated": held["p_treated"],
            "effect": held["p_treated"] - held["p_control"],
            "ordered_at": _instants(held["ordered_at"]),
        }
    )


def count_cells(traits: Traits, queries: Queries) -> Counter[tuple[str, str]]:
    """Selected queries by all that decides their outcome: few cells, whatever the number of customers."""
    owner, wave = np.nonzero(queries.selected)
    stays = traits.churn_at[owner] >= queries.at[owner, wave] + PLANTED.horizon_days * DAY
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
    """What the best model reaches on these contacts, from the true probabilities of their cells.

    Args:
        cells: counts as of `count_cells`.

    Returns:
        `auc`, of the treated by their chance of an upgrade: of one who knows everything, of one who does
        not know who is about to leave, and of one who sees what was done but not in which order.
        `gain`, of calling, in upgrades a selected query: calling all, and the area between the curve of
        gains and the line of a random choice (Qini), by the true effect and by the chance of an upgrade.
    """
    keys = np.array([[int(part) for part in cell.split(",")] for cell in cells])
    count = np.array(list(cells.values()), dtype=float)
    state, parent, reluctant, family, stays, treated = keys.T
    untouched, convinced, answer = chances(state, parent == 1, reluctant == 1, family == 1)
    control = untouched * stays
    called = answer * convinced * stays + (1 - answer) * control
    merged = np.where(state == BROWSE_LAST_NOT, BROWSE_LAST, state)
    seen = {
        "knowing_all": called,
        "knowing_no_churn": _average(called, count, state, parent, reluctant, family),
        "without_order": _average(called, count, merged, parent, reluctant, family),
    }
    weight = count * treated
    hits, shares = np.repeat([1.0, 0.0], len(count)), np.concatenate([weight * called, weight * (1 - called)])
    expected = _average(called - control, count, state, parent, reluctant, family)
    by_chance = _average(called, count, state, parent, reluctant, family)
    return {
        "treated": int(weight.sum()),
        "control": int((count * (1 - treated)).sum()),
        "upgrade_share": {
            "treated": float((weight * called).sum() / weight.sum()),
            "control": float((count * (1 - treated) * control).sum() / (count * (1 - treated)).sum()),
        },
        "auc": {name: auc(np.tile(score, 2), hits, shares) for name, score in seen.items()},
        "gain": {
            "of_calling_all": float((count * expected).sum() / count.sum()),
            "qini_by_effect": _qini(expected, expected, count),
            "qini_by_chance": _qini(by_chance, expected, count),
        },
    }


def ground_truth() -> dict[str, Any]:
    """All that is planted, by name."""
    return {
        "behaviour": dataclasses.asdict(PLANTED),
        "ids": dataclasses.asdict(parameters.IDS),
        "consent": parameters.CONSENT,
        "states": STATES,
        "offers": OFFERS,
    }


def _average(value: Array, count: Array, *known: Array) -> Array:
    """The mean of a value over all cells that look alike to one who knows so much."""
    _, group = np.unique(np.stack(known, axis=1), axis=0, return_inverse=True)
    return np.asarray((np.bincount(group, value * count) / np.bincount(group, count))[group])


def _qini(score: Array, effect: Array, count: Array) -> float:
    """Area between the cumulative gain, called in the order of a score, and a random order's straight line."""
    values, group = np.unique(-score, return_inverse=True)
    share = np.bincount(group, count, len(values)) / count.sum()
    gain = np.concatenate([[0.0], np.cumsum(np.bincount(group, count * effect, len(values)) / count.sum())])
    area = (share * (gain[1:] + gain[:-1]) / 2).sum()
    return float(area - gain[-1] / 2)


def _words(words: tuple[str, ...], position: Array) -> pa.Array:
    return pa.array(np.array(words, dtype=object)[position].tolist(), pa.string())


def _instants(at: Array) -> pa.Array:
    """Seconds after `START` as UTC instants; `NEVER` is null."""
    instants = _STARTED + (np.where(at < NEVER, at, 0) * 1_000_000).astype("timedelta64[us]")
    return pa.array(instants, pa.timestamp("us"), mask=at >= NEVER).cast(pa.timestamp("us", tz="UTC"))
