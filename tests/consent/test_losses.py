"""What the source no longer states stops the run or ends a consent; ids that meet no customer are noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lam_spark.consent.eligibility import eligible
from lam_spark.consent.stage import ConsentResult, update_consent
from lam_spark.errors import ConfigError, ConsentError
from lam_spark.runtime.context import RunContext
from tests.support.shop import STARTED_AT, key_of, raw_id, statement, write_inputs
from tests.support.tables import event, events_frame

CONTACT = "direct_marketing"
JAN, FEB, MAR = (f"2023-{month:02d}-01T00:00:00Z" for month in (1, 2, 3))
SELECT = "SELECT customer AS customer_id, purpose, state, effective_at, recorded_at, source FROM consent_statements"
MANY = 20

Row = dict[str, Any]


def opt_in(number: int, at: str = JAN) -> Row:
    return statement(raw_id(number), CONTACT, "opt_in", at)


def opt_out(number: int, at: str = FEB) -> Row:
    return statement(raw_id(number), CONTACT, "opt_out", at)


class Ledger:
    """Refreshes of one ledger; keywords are keys of the section `consent`."""

    def __init__(self, build: Callable[..., RunContext], root: Path) -> None:
        self._build, self._root = build, root

    def context(self, **consent: Any) -> RunContext:
        return self._build(consent={"select": SELECT, **consent})

    def refresh(self, statements: Iterable[Row], **consent: Any) -> ConsentResult:
        write_inputs(self._root / "raw", statements=list(statements))
        return update_consent(self.context(**consent))

    def contacts(self) -> set[int]:
        """Numbers of the customers who may be contacted."""
        numbers = {key_of(raw_id(n)): n for n in range(2 * MANY)}
        rows = eligible(self.context().tables.read("consent"), [CONTACT], STARTED_AT).collect()
        return {numbers[row["customer_key"]] for row in rows}


@pytest.fixture
def ledger(make_context: Callable[..., RunContext], tmp_path: Path) -> Ledger:
    return Ledger(make_context, tmp_path / "shop")


def test_a_history_that_lost_statements_is_refused(ledger: Ledger) -> None:
    ledger.refresh([*map(opt_in, range(MANY)), opt_out(2)])
    before = ledger.context().tables.version("consent")
    with pytest.raises(
        ConsentError,
        match="2 statements of 2 customers that the table consent holds are no longer in the ledger's",
    ) as raised:
        ledger.refresh([opt_in(0), *map(opt_in, range(3, MANY)), opt_out(2), opt_out(5)])
    assert raised.value.exit_code == 4
    assert "consent.accept_loss=2" in str(raised.value)
    assert ledger.context().tables.version("consent") == before


def test_an_accepted_loss_ends_the_consent_and_keeps_the_withdrawal(ledger: Ledger) -> None:
    ledger.refresh([*map(opt_in, range(MANY)), opt_out(2)])
    kept = [opt_in(0), *map(opt_in, range(2, MANY))]
    result = ledger.refresh(kept, accept_loss=2)
    assert (result.consents_ended, result.statements_new) == (1, 0)
    assert "1 consents that the source no longer states have ended" in result.details
    assert ledger.contacts() == set(range(MANY)) - {1, 2}
    assert ledger.refresh(kept, accept_loss=2).consents_ended == 0
    with pytest.raises(ConsentError, match="2 statements of 2 customers"):
        ledger.refresh(kept)


def test_customers_in_the_file_of_erased_ids_may_disappear(ledger: Ledger, tmp_path: Path) -> None:
    ledger.refresh(map(opt_in, range(MANY)))
    erased = tmp_path / "erased.txt"
    with pytest.raises(ConfigError, match=r"consent\.erased_ids: expected a text file"):
        ledger.refresh(map(opt_in, range(1, MANY)), erased_ids=str(erased))
    erased.write_text(f"{key_of(raw_id(0))}\n")
    assert ledger.refresh(map(opt_in, range(1, MANY)), erased_ids=str(erased)).consents_ended == 1
    assert ledger.contacts() == set(range(1, MANY))
    with pytest.raises(ConsentError, match="1 statements of 1 customers"):
        ledger.refresh(map(opt_in, range(2, MANY)), erased_ids=str(erased))


def test_a_consent_that_a_state_no_longer_holds_ends(ledger: Ledger) -> None:
    """Customer 0 disappears; of customer 1 the statement is replaced by a newer one."""
    ledger.refresh(map(opt_in, range(MANY)), kind="state")
    result = ledger.refresh([opt_in(1, MAR), *map(opt_in, range(2, MANY))], kind="state")
    assert (result.consents_ended, result.statements_new) == (1, 1)
    assert ledger.contacts() == set(range(1, MANY))
    again = ledger.refresh([opt_in(1, MAR), *map(opt_in, range(2, MANY))], kind="state")
    assert (again.consents_ended, again.statements_new) == (0, 0)
    renewed = [opt_in(0, "2024-01-02T09:04:00Z"), opt_in(1, MAR), *map(opt_in, range(2, MANY))]
    ledger.refresh(renewed, kind="state")
    numbers = {key_of(raw_id(n)): n for n in range(MANY)}
    rows = eligible(ledger.context().tables.read("consent"), [CONTACT], STARTED_AT.replace(hour=10)).collect()
    assert {numbers[row["customer_key"]] for row in rows} == set(range(MANY))


def test_a_state_that_lost_many_consents_is_refused(ledger: Ledger) -> None:
    """As many statements, but of other customers: the size does not show it."""
    ledger.refresh(map(opt_in, range(MANY)), kind="state")
    others = list(map(opt_in, range(3, MANY + 3)))
    with pytest.raises(ConsentError, match="3 of 20 consents in force are no longer stated"):
        ledger.refresh(others, kind="state")
    assert ledger.refresh(others, kind="state", accept_loss=3).consents_ended == 3


def test_a_source_that_shrank_is_refused(ledger: Ledger) -> None:
    ledger.refresh([*map(opt_in, range(MANY)), *map(opt_out, range(MANY))], kind="state")
    kept = list(map(opt_out, range(MANY)))
    with pytest.raises(ConsentError, match=r"has 20 statements, 20 fewer .*max_shrink_share = 0\.1 allows"):
        ledger.refresh(kept, kind="state")
    assert ledger.refresh(kept, kind="state", max_shrink_share=0.5).statements_new == 0


def publish_events(ledger: Ledger, customers: Iterable[str]) -> None:
    ctx = ledger.context()
    rows = [event(customer, "2023-06-01T00:00:00", f"e{n}") for n, customer in enumerate(customers)]
    ctx.tables.overwrite(events_frame(ctx, rows), "events")


def test_a_ledger_that_meets_no_customer_is_refused(ledger: Ledger) -> None:
    publish_events(ledger, ["another"])
    with pytest.raises(ConsentError, match="none of the 20 customers of the consent ledger has an event"):
        ledger.refresh(map(opt_in, range(MANY)))
    ledger.refresh(map(opt_in, range(MANY - 1)))


def test_opt_outs_without_events_are_counted_and_may_be_limited(ledger: Ledger) -> None:
    publish_events(ledger, [key_of(raw_id(0))])
    statements = [opt_in(0), opt_in(1), opt_out(2)]
    result = ledger.refresh(statements, max_new_unmatched=0)
    assert result.unmatched_opt_outs == 1
    assert "1 customers who opted out have no event" in result.details
    assert ledger.refresh(statements, max_new_unmatched=0).unmatched_opt_outs == 1
    with pytest.raises(
        ConsentError, match="2 customers who opted out have no event, 1 more than at the last"
    ):
        ledger.refresh([*statements, opt_out(3)], max_new_unmatched=0)
    assert ledger.refresh([*statements, opt_out(3)]).unmatched_opt_outs == 2
