"""Vectors of customers: the model's own state of one alone, whoever else is asked about and whatever comes later."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lam_spark.model.artifact import Artifact
from lam_spark.model.transformer import LargeActionModel
from lam_spark.scoring.predictor import embed_customers, predict_queries
from lam_spark.training_data.aggregates import aggregates
from lam_spark.training_data.packing import Customer
from tests.support.tiny import DAY, LAYOUT, SIZE, START, batch_of, customer, random_model

HOUR = 72  # Wednesday 00:00
UNKNOWN, MISSING = 1, 2


@pytest.fixture
def model() -> LargeActionModel:
    return random_model()


def embed(
    model: LargeActionModel, customers: list[Customer], at: int, hour: int = HOUR
) -> npt.NDArray[np.float32]:
    return embed_customers(Artifact(model, {}, {}, ""), customers, at, hour)


def daily(events: int, asked: tuple[int, ...] = (), seed: int = 0, first: int = 0) -> Customer:
    """A customer with an event a day from day `first` on."""
    start = START + first * DAY
    return customer(
        LAYOUT, [start + day * DAY for day in range(events)], [start + day * DAY for day in asked], seed=seed
    )


def only(one: Customer, events: int) -> Customer:
    """The customer's first events."""
    return dataclasses.replace(one, events={name: values[:events] for name, values in one.events.items()})


def asked_by_hand(model: LargeActionModel, one: Customer, at: int) -> npt.NDArray[np.float32]:
    """The hidden state of one query of nothing, from a block written by hand: events, then the query alone."""
    events = len(one.events["event_time"])
    batch: dict[str, Any] = {
        "window": [1] * events,
        "event_time": one.events["event_time"],
        "hour_of_week": one.events["hour_of_week"],
        "query_window": [1],
        "query_index": [events],
        "query_time": [at],
        "query_hour_of_week": [HOUR],
    }
    for name in LAYOUT.categorical:
        batch |= {f"event_{name}": one.events[name], f"query_{name}": [MISSING]}
    for name in LAYOUT.numeric:
        batch |= {f"event_{name}": one.events[name], f"query_{name}": np.full(1, np.nan, np.float32)}
    tensors = {name: torch.as_tensor(values)[None] for name, values in batch.items()}
    alone = LargeActionModel(
        dataclasses.replace(LAYOUT, block_events=events, queries_per_block=1), SIZE, model.normaliser
    ).eval()
    alone.load_state_dict(model.state_dict())
    with torch.inference_mode():
        hidden: npt.NDArray[np.float32] = alone(tensors, with_targets=False).query_hidden_BQD[0, 0].numpy()
    return hidden


@pytest.mark.parametrize("events", [1, 7, 16])
def test_it_is_the_models_own_state_of_one_customer_alone(model: LargeActionModel, events: int) -> None:
    one, at = daily(events, seed=events), START + 20 * DAY
    vectors = embed(model, [one], at)
    assert (vectors.shape, vectors.dtype) == ((1, SIZE.d_model), np.float32)
    np.testing.assert_allclose(vectors[0], asked_by_hand(model, one, at), atol=1e-5)


def test_it_does_not_depend_on_who_else_is_asked_about(model: LargeActionModel) -> None:
    lengths = (5, 1, 9, 30, 0, 16, 7, *range(40))  # more blocks than one pass takes
    everybody = [daily(events, seed=number) for number, events in enumerate(lengths)]
    at = START + 40 * DAY
    together = embed(model, everybody, at)
    assert together.shape == (len(lengths), SIZE.d_model)
    for one, vector in zip(everybody, together, strict=True):
        np.testing.assert_allclose(embed(model, [one], at)[0], vector, atol=1e-5)
    different = {tuple(vector.round(3)) for vector in together}
    assert len(different) == len(lengths) - lengths.count(0) + 1


@pytest.mark.parametrize("known", [0, 3, 16, 17, 24, 41])
def test_events_from_the_instant_on_do_not_change_it(model: LargeActionModel, known: int) -> None:
    whole = daily(60)
    at = START + known * DAY  # the instant of the next event, which is not seen either
    np.testing.assert_allclose(embed(model, [only(whole, known)], at), embed(model, [whole], at), atol=1e-5)
    if known:
        before = embed(model, [only(whole, known - 1)], at)
        assert np.abs(before - embed(model, [whole], at)).max() > 1e-3


def test_a_customers_own_queries_do_not_change_it(model: LargeActionModel) -> None:
    at = START + 9 * DAY
    plain, asking = daily(6), daily(6, (2, 6, 6, 7, 8, 9))
    asking = dataclasses.replace(asking, events=plain.events)
    np.testing.assert_array_equal(embed(model, [asking], at), embed(model, [plain], at))


def test_the_instant_and_its_hour_change_it(model: LargeActionModel) -> None:
    one, at = daily(6), START + 6 * DAY
    for other in (embed(model, [one], at + 30 * DAY), embed(model, [one], at, HOUR + 24)):
        assert np.abs(other - embed(model, [one], at)).max() > 1e-3


def test_whoever_has_done_nothing_yet_has_the_vector_of_nothing(model: LargeActionModel) -> None:
    at = START
    vectors = embed(model, [daily(0), daily(9, first=1), daily(30, seed=1)], at)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors, vectors[[0, 0, 0]], atol=1e-5)


def test_ids_newer_than_the_model_are_unknown_to_it(model: LargeActionModel) -> None:
    given = [daily(3), daily(3)]
    for one, item in zip(given, (UNKNOWN, 99), strict=True):
        one.events["item"][1:] = item
    newer, unknown = embed(model, given, START + 3 * DAY)
    np.testing.assert_allclose(newer, unknown, atol=1e-5)


def test_missing_numbers_give_a_finite_vector(model: LargeActionModel) -> None:
    one = daily(6)
    one.events["amount"][:] = np.nan
    assert np.isfinite(embed(model, [one], START + 6 * DAY)).all()


def test_of_nobody_there_are_no_vectors(model: LargeActionModel) -> None:
    assert embed(model, [], START).shape == (0, SIZE.d_model)


@torch.no_grad()
def test_an_answer_is_what_a_head_makes_of_it_the_aggregates_and_the_habits(model: LargeActionModel) -> None:
    one, at = daily(6, (6,)), START + 6 * DAY
    nothing = {f"query_{name}": np.full(1, MISSING, np.int32) for name in LAYOUT.categorical}
    nothing |= {"query_amount": np.full(1, np.nan, np.float32), "query_hour_of_week": np.full(1, HOUR)}
    asked = dataclasses.replace(one, queries=one.queries | nothing)
    counted = torch.from_numpy(aggregates(LAYOUT, asked.events, asked.queries))
    asking = batch_of(LAYOUT, [asked])
    seen = torch.zeros(1, LAYOUT.queries_per_block, LAYOUT.block_events, dtype=torch.bool)
    seen[0, 0, :6] = True
    decayed_counts = model.decayed_counts(asking, seen)[:, :1]
    vector = torch.from_numpy(embed(model, [one], at))
    (expected,) = model.predict_targets(vector[None], counted[None], decayed_counts)["reply"]
    (answers,) = predict_queries(Artifact(model, {}, {}, ""), [asked], "reply")
    np.testing.assert_allclose(answers, expected.numpy(), atol=1e-5)
