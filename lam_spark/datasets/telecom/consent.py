"""Consent statements of the customers and the consent status that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, draw_local_times
from lam_spark.datasets.telecom.parameters import CONSENT_SHARES, SPAN

PURPOSES = ("model_training", "direct_marketing")
_IN, _OUT = "opt_in", "opt_out"
# Consent history -> first statements and later statements, one per purpose.
_HISTORIES: dict[str, tuple[tuple[str, str] | None, tuple[str | None, str | None]]] = {
    "both": ((_IN, _IN), (None, None)),
    "training only": ((_IN, _OUT), (None, None)),
    "contact only": ((_OUT, _IN), (None, None)),
    "withdrew contact": ((_IN, _IN), (None, _OUT)),
    "withdrew both": ((_IN, _IN), (_OUT, _OUT)),
    "came back": ((_OUT, _OUT), (_IN, _IN)),
    "contradicted": ((_IN, _IN), (_OUT, _OUT)),
    "refused": ((_OUT, _OUT), (None, None)),
    "never asked": (None, (None, None)),
}


@dataclass(frozen=True)
class Consent:
    """Consent statements and consent status of a chunk's customers.

    Attributes:
        statements: columns `owner, at, purpose, state`; `at` is the effective and the recorded time.
        history: (n,) name in `CONSENT_SHARES`.
        opted_in: purpose -> (n,) whether all of the newest statements are opt-ins.
    """

    statements: pd.DataFrame
    history: Array
    opted_in: dict[str, Array]


def draw_consent(rng: np.random.Generator, count: int) -> Consent:
    """Draw the statements of a chunk's customers: first before the year starts, some change within the year."""
    names, shares = list(CONSENT_SHARES), list(CONSENT_SHARES.values())
    history = np.array(names, dtype=object)[rng.choice(len(names), count, p=shares)]
    first_at = draw_local_times(rng, rng.integers(-50, 0, count), 9, 20)
    # Contradicting statements have the same timestamp.
    later_at = np.where(
        history == "contradicted",
        first_at,
        draw_local_times(rng, rng.integers(30, SPAN // 86_400, count), 9, 20),
    )
    parts = []
    opted_in = {purpose: np.zeros(count, dtype=bool) for purpose in PURPOSES}
    for name, (first, later) in _HISTORIES.items():
        owner = np.flatnonzero(history == name)
        for i, purpose in enumerate(PURPOSES):
            statements = [(first_at, first[i] if first else None), (later_at, later[i])]
            for at, state in statements:
                if state:
                    parts.append(
                        pd.DataFrame({"owner": owner, "at": at[owner], "purpose": purpose, "state": state})
                    )
            states = [state for _, state in statements if state]
            opted_in[purpose][owner] = bool(states) and states[-1] == _IN
    return Consent(pd.concat(parts, ignore_index=True).sort_values(["at", "owner"]), history, opted_in)
