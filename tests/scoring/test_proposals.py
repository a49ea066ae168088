"""Proposals have unique ids and declared fields only, and their number is limited."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyspark.sql import DataFrame

from lam_spark.errors import ConfigError
from lam_spark.runtime.context import RunContext
from lam_spark.scoring.proposals import read_proposals
from lam_spark.sources.inputs import Inputs

Build = Callable[..., RunContext]
PROPOSAL = "SELECT 'mail' AS proposal_id, 'a mail' AS description"


def read(make_context: Build, select: str, **scoring: object) -> DataFrame:
    ctx = make_context(scoring={"target": "response", "proposals": select, **scoring})
    return read_proposals(Inputs(ctx.spark, ctx.config.inputs, ctx.config.views), ctx.config)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            f"{PROPOSAL}, 'red' AS colour",
            "scoring.proposals yields 'colour', which is not a field of the model",
        ),
        # A reference is not a field of the model.
        (f"{PROPOSAL}, '7' AS campaign", "yields 'campaign', which is not a field of the model"),
        ("SELECT 'mail' AS proposal_id", "scoring.proposals must yield description"),
        (f"{PROPOSAL} WHERE false", "gives no proposal at as_of 2023-12-20"),
        (f"{PROPOSAL} UNION ALL {PROPOSAL}", "repeats a proposal_id"),
        (
            f"{PROPOSAL} UNION ALL SELECT concat('mail about ', NULL), 'a mail'",
            "a proposal without a proposal_id",
        ),
        (f"{PROPOSAL} UNION ALL SELECT ' ', 'a mail'", "a proposal without a proposal_id"),
        (f"{PROPOSAL} UNION ALL SELECT 'call', 'a call'", "more than scoring.max_proposals = 1 rows"),
        (f"{PROPOSAL} FROM nowhere", "scoring.proposals"),
    ],
)
def test_invalid_proposals_are_refused(make_context: Build, select: str, message: str) -> None:
    limit = 1 if "max_proposals" in message else 50
    with pytest.raises(ConfigError, match=message):
        read(make_context, select, max_proposals=limit)


def test_a_proposal_has_all_fields_and_may_depend_on_as_of(make_context: Build) -> None:
    select = "SELECT 7 AS proposal_id, 'until {as_of}' AS description, 'books' AS item, '14' AS offer_days"
    (row,) = read(make_context, select).collect()
    fields = {"touchpoint": None, "item": "books", "product": None, "action": None, "amount": None}
    assert row.asDict() == {
        "proposal_id": "7",
        "description": "until 2023-12-20",
        **fields,
        "offer_days": 14.0,
    }
