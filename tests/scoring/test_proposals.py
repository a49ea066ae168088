"""Which proposals may be scored: each with an id of its own, of declared fields, no more than fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lam_spark.errors import ConfigError
from lam_spark.runtime.context import Run
from lam_spark.scoring.stage import proposals

Build = Callable[..., Run]
ONE = "SELECT 'mail' AS proposal_id, 'a mail' AS description"


def asked(make_run: Build, select: str, **more: object) -> Run:
    return make_run(scoring={"target": "response", "proposals": select, **more})


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (f"{ONE}, 'red' AS colour", "scoring.proposals yields 'colour', which is not a field of the model"),
        (f"{ONE}, '7' AS campaign", "yields 'campaign', which is not a field of the model"),  # a reference
        ("SELECT 'mail' AS proposal_id", "scoring.proposals must yield description"),
        (f"{ONE} WHERE false", "gives no proposal at as_of 2023-12-20"),
        (f"{ONE} UNION ALL {ONE}", "repeats a proposal_id"),
        (f"{ONE} UNION ALL SELECT concat('mail about ', NULL), 'a mail'", "a proposal without a proposal_id"),
        (f"{ONE} UNION ALL SELECT ' ', 'a mail'", "a proposal without a proposal_id"),
        (f"{ONE} UNION ALL SELECT 'call', 'a call'", "more than scoring.max_proposals = 1 rows"),
        (f"{ONE} FROM nowhere", "scoring.proposals"),
    ],
)
def test_proposals_that_cannot_be_scored_are_refused(make_run: Build, select: str, says: str) -> None:
    most = 1 if "max_proposals" in says else 50
    with pytest.raises(ConfigError, match=says):
        proposals(asked(make_run, select, max_proposals=most))


def test_a_proposal_has_every_field_and_may_depend_on_the_day(make_run: Build) -> None:
    select = "SELECT 7 AS proposal_id, 'until {as_of}' AS description, 'books' AS item, '14' AS offer_days"
    (row,) = proposals(asked(make_run, select)).collect()
    fields = {"touchpoint": None, "item": "books", "product": None, "action": None, "amount": None}
    assert row.asDict() == {
        "proposal_id": "7",
        "description": "until 2023-12-20",
        **fields,
        "offer_days": 14.0,
    }
