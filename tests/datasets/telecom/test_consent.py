"""The consent status follows from the newest statements."""

from __future__ import annotations

import numpy as np
import pytest

from lam_spark.datasets.telecom.consent import PURPOSES, draw_consent
from lam_spark.datasets.telecom.parameters import CONSENT_SHARES


def test_customers_are_opted_in_if_all_of_their_newest_statements_are_opt_ins() -> None:
    consent = draw_consent(np.random.default_rng(2), 5_000)
    statements = consent.statements.sort_values(["owner", "purpose", "at"])
    newest = statements.groupby(["owner", "purpose"])["at"].transform("max") == statements["at"]
    states = statements[newest].groupby(["owner", "purpose"])["state"].agg(set)
    for purpose in PURPOSES:
        for owner in range(5_000):
            is_opted_in = states.get((owner, purpose), set()) == {"opt_in"}
            assert consent.opted_in[purpose][owner] == is_opted_in
    for history, share in CONSENT_SHARES.items():
        assert (consent.history == history).mean() == pytest.approx(share, abs=0.02)
