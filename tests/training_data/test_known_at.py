"""An event that becomes known after a query is invisible to it in every input, whenever it happened."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lam_spark.model.artifact import Artifact
from lam_spark.scoring.predictor import predict_queries
from lam_spark.training_data.aggregates import aggregates
from lam_spark.training_data.packing import Block, Customer, pack_queries
from tests.support.tiny import DAY, HOUR, LAYOUT, START, blocks_of, customer, layout, random_model

SHAPE = layout(who_fields=("item",))
# Events on each day, and a query at noon of some of them.
QUERY_DAYS = (3, 20, 29, 37)


def history(days: int) -> Customer:
    """One event a day, known when it happens."""
    times = [START + day * DAY for day in range(days)]
    return customer(SHAPE, times, [START + day * DAY + 12 * HOUR for day in QUERY_DAYS], seed=5)


def with_late_event(one: Customer, happened: int, known: int) -> Customer:
    """The customer with a further event of other values, in the order in which the events become known."""
    values: dict[str, Any] = {"known_at": START + known * DAY, "event_time": START + happened * DAY}
    values |= {"hour_of_week": 100, "action": 5, "item": 8, "amount": 99.0}
    at = int(np.searchsorted(one.events["known_at"], values["known_at"], side="right"))
    events = {name: np.insert(array, at, values[name]) for name, array in one.events.items()}
    return dataclasses.replace(one, events=events)


def inputs_by_query(one: Customer) -> dict[int, dict[str, Any]]:
    """Everything that a model could read about each query in its block, by the query's row."""
    inputs = {}
    for block in pack_queries(SHAPE, [one]):
        for slot in np.flatnonzero(block["query_row"] >= 0):
            inputs[int(block["query_row"][slot])] = _inputs(block, int(slot))
    return inputs


def _inputs(block: Block, slot: int) -> dict[str, Any]:
    in_window = block["window"] == block["query_window"][slot]
    seen = in_window & (np.arange(len(in_window)) < block["query_index"][slot])
    has_initial = block["initial_window"][0] == block["query_window"][slot]
    events = ("known_at", "log_delay_hours", "hour_of_week", "event_action", "event_item", "event_amount")
    return {
        **{name: block[name][seen].tolist() for name in events},
        "aggregates": block["aggregates"].reshape(SHAPE.queries_per_block, -1)[slot].tolist(),
        "query_item": int(block["query_item"][slot]),
        "initial": (block["initial_counts"] * has_initial).tolist(),
    }


# Known between the second and the third query: in the window, before it, and in a window of its own.
@pytest.mark.parametrize("happened", [1, 10, 19])
def test_it_changes_only_the_inputs_of_queries_after_it_is_known(happened: int) -> None:
    one = history(40)
    before, after = inputs_by_query(one), inputs_by_query(with_late_event(one, happened, known=25))
    assert [before[row] == after[row] for row in range(4)] == [True, True, False, False]


def test_predictions_before_it_is_known_stay_as_they_are() -> None:
    """Also indirectly: no event that the query sees has attended to the late one."""
    artifact = Artifact(random_model(SHAPE), {}, {}, "")
    one = history(40)
    late = with_late_event(one, happened=1, known=25)
    before, after = predict_queries(artifact, [one, late], "reply")
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-5)
    assert (np.abs(after[2:] - before[2:]) > 1e-4).all()


def test_the_delay_is_an_input_and_zero_for_events_known_at_once() -> None:
    late = customer(LAYOUT, [START, START + DAY], delays=[0, 30 * HOUR])
    (block,) = blocks_of(LAYOUT, [late])
    assert block["log_delay_hours"][:2].tolist() == [0.0, pytest.approx(np.log(31))]
    assert not block["log_delay_hours"][2:].any()


def test_without_delays_their_weight_does_not_change_a_prediction() -> None:
    model = random_model()
    artifact = Artifact(model, {}, {}, "")
    times = [START + day * DAY for day in range(5)]
    prompt, late = (customer(LAYOUT, times, [START + 9 * DAY], delays=delay) for delay in (0, 2 * DAY))
    first = predict_queries(artifact, [prompt, late], "reply")
    model.delay_weight.data += 1.0
    second = predict_queries(artifact, [prompt, late], "reply")
    assert second[0] == first[0]
    assert abs(second[1] - first[1]).item() > 1e-4
    assert abs(first[1] - first[0]).item() > 1e-4


def test_baskets_that_become_known_together_are_counted_one_by_one() -> None:
    """Three visits of which a login tells at once; two of the rows are one basket."""
    shape = layout(counted_ids=(3,), window_days=(7,))
    one = customer(shape, [START] * 4, [START + DAY], action=[3] * 4, delays=[3 * DAY, DAY, DAY, HOUR])
    values = dict(zip(shape.aggregate_names, aggregates(shape, one.events, one.queries)[0], strict=True))
    assert values["action_3_events_7d"] == pytest.approx(np.log(5))
    assert values["action_3_groups_7d"] == pytest.approx(np.log(4))
