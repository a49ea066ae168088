"""What customers state about the use of their data, and where they stand in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lam_spark.datasets.telecom.customers import Array, local_time
from lam_spark.datasets.telecom.parameters import CONSENT, SPAN

PURPOSES = ("model_training", "direct_marketing")
_IN, _OUT = "opt_in", "opt_out"
# Stance -> what is said when asked and what is said later, about each purpose.
_SAID: dict[str, tuple[tuple[str, str] | None, tuple[str | None, str | None]]] = {
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
    """A chunk's statements and standings.

    Attributes:
        statements: columns `owner, at, purpose, state`; `at` is when it takes effect and is recorded.
        stance: (n,) name in `CONSENT`.
        agreed: purpose -> (n,) whether the newest statements say yes, all of them.
    """

    statements: pd.DataFrame
    stance: Array
    agreed: dict[str, Array]


def draw_consent(rng: np.random.Generator, count: int) -> Consent:
    """Draw the statements of a chunk's customers: asked before the year begins, some change their mind."""
    stance = np.array(list(CONSENT), dtype=object)[rng.choice(len(CONSENT), count, p=list(CONSENT.values()))]
    asked = local_time(rng, rng.integers(-50, 0, count), 9, 20)
    # Those who contradict themselves do so in one instant.
    later = np.where(
        stance == "contradicted", asked, local_time(rng, rng.integers(30, SPAN // 86_400, count), 9, 20)
    )
    parts = []
    agreed = {purpose: np.zeros(count, dtype=bool) for purpose in PURPOSES}
    for name, (first, second) in _SAID.items():
        who = np.flatnonzero(stance == name)
        for i, purpose in enumerate(PURPOSES):
            states = [(asked, first[i] if first else None), (later, second[i])]
            for when, state in states:
                if state:
                    parts.append(
                        pd.DataFrame({"owner": who, "at": when[who], "purpose": purpose, "state": state})
                    )
            said = [state for _, state in states if state]
            agreed[purpose][who] = bool(said) and said[-1] == _IN
    return Consent(pd.concat(parts, ignore_index=True).sort_values(["at", "owner"]), stance, agreed)
