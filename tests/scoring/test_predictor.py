"""Customer embeddings depend only on the customer's own events before `as_of`."""

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
    model: LargeActionModel, customers: list[Customer], as_of: int, hour: int = HOUR
) -> npt.NDArray[np.float32]:
    return embed_customers(Artifact(model, {}, {}, ""), customers, as_of, hour)


def daily(events: int, query_days: tuple[int, ...] = (), seed: int = 0, first: int = 0) -> Customer:
    """A customer with one event a day from day `first` on."""
    start = START + first * DAY
    return customer(
        LAYOUT,
        [start + day * DAY for day in range(events)],
        [start + day * DAY for day in query_days],
        seed=seed,
    )


def first_events(history: Customer, events: int) -> Customer:
    """The customer with only the first events."""
    return dataclasses.replace(
        history, events={name: values[:events] for name, values in history.events.items()}
    )


def embed_by_hand(model: LargeActionModel, history: Customer, as_of: int) -> npt.NDArray[np.float32]:
    """Hidden state of an empty query after the events, in a block that is built here."""
    events = len(history.events["known_at"])
    batch: dict[str, Any] = {
        "window": [1] * events,
        "known_at": history.events["known_at"],
        "log_delay_hours": np.zeros(events, np.float32),
        "hour_of_week": history.events["hour_of_week"],
        "query_window": [1],
        "query_index": [events],
        "query_time": [as_of],
        "query_hour_of_week": [HOUR],
    }
    for name in LAYOUT.categorical:
        batch |= {f"event_{name}": history.events[name], f"query_{name}": [MISSING]}
    for name in LAYOUT.numeric:
        batch |= {f"event_{name}": history.events[name], f"query_{name}": np.full(1, np.nan, np.float32)}
    tensors = {name: torch.as_tensor(values)[None] for name, values in batch.items()}
    single = LargeActionModel(
        dataclasses.replace(LAYOUT, block_events=events, queries_per_block=1), SIZE, model.normaliser
    ).eval()
    single.load_state_dict(model.state_dict())
    with torch.inference_mode():
        hidden: npt.NDArray[np.float32] = single(tensors, with_targets=False).query_hidden_BQD[0, 0].numpy()
    return hidden


@pytest.mark.parametrize("events", [1, 7, 16])
def test_an_embedding_is_the_hidden_state_of_an_empty_query(model: LargeActionModel, events: int) -> None:
    history, as_of = daily(events, seed=events), START + 20 * DAY
    embeddings = embed(model, [history], as_of)
    assert (embeddings.shape, embeddings.dtype) == ((1, SIZE.d_model), np.float32)
    np.testing.assert_allclose(embeddings[0], embed_by_hand(model, history, as_of), atol=1e-5)


def test_an_embedding_does_not_depend_on_other_customers(model: LargeActionModel) -> None:
    lengths = (5, 1, 9, 30, 0, 16, 7, *range(40))  # more blocks than one forward pass processes
    customers = [daily(events, seed=number) for number, events in enumerate(lengths)]
    as_of = START + 40 * DAY
    all_embeddings = embed(model, customers, as_of)
    assert all_embeddings.shape == (len(lengths), SIZE.d_model)
    for history, embedding in zip(customers, all_embeddings, strict=True):
        np.testing.assert_allclose(embed(model, [history], as_of)[0], embedding, atol=1e-5)
    distinct = {tuple(embedding.round(3)) for embedding in all_embeddings}
    assert len(distinct) == len(lengths) - lengths.count(0) + 1


@pytest.mark.parametrize("visible_events", [0, 3, 16, 17, 24, 41])
def test_events_from_as_of_on_do_not_change_an_embedding(
    model: LargeActionModel, visible_events: int
) -> None:
    complete = daily(60)
    as_of = START + visible_events * DAY  # the time of the next event, which is not visible either
    np.testing.assert_allclose(
        embed(model, [first_events(complete, visible_events)], as_of),
        embed(model, [complete], as_of),
        atol=1e-5,
    )
    if visible_events:
        before = embed(model, [first_events(complete, visible_events - 1)], as_of)
        assert np.abs(before - embed(model, [complete], as_of)).max() > 1e-3


def test_the_queries_of_a_customer_do_not_change_the_embedding(model: LargeActionModel) -> None:
    as_of = START + 9 * DAY
    plain, queried = daily(6), daily(6, (2, 6, 6, 7, 8, 9))
    queried = dataclasses.replace(queried, events=plain.events)
    np.testing.assert_array_equal(embed(model, [queried], as_of), embed(model, [plain], as_of))


def test_as_of_and_its_hour_change_an_embedding(model: LargeActionModel) -> None:
    history, as_of = daily(6), START + 6 * DAY
    for changed in (embed(model, [history], as_of + 30 * DAY), embed(model, [history], as_of, HOUR + 24)):
        assert np.abs(changed - embed(model, [history], as_of)).max() > 1e-3


def test_customers_without_events_before_as_of_share_one_embedding(model: LargeActionModel) -> None:
    as_of = START
    embeddings = embed(model, [daily(0), daily(9, first=1), daily(30, seed=1)], as_of)
    assert np.isfinite(embeddings).all()
    np.testing.assert_allclose(embeddings, embeddings[[0, 0, 0]], atol=1e-5)


def test_ids_newer_than_the_model_are_unknown(model: LargeActionModel) -> None:
    customers = [daily(3), daily(3)]
    for history, item in zip(customers, (UNKNOWN, 99), strict=True):
        history.events["item"][1:] = item
    newer, unknown = embed(model, customers, START + 3 * DAY)
    np.testing.assert_allclose(newer, unknown, atol=1e-5)


def test_missing_numbers_give_a_finite_embedding(model: LargeActionModel) -> None:
    history = daily(6)
    history.events["amount"][:] = np.nan
    assert np.isfinite(embed(model, [history], START + 6 * DAY)).all()


def test_no_customers_give_no_embeddings(model: LargeActionModel) -> None:
    assert embed(model, [], START).shape == (0, SIZE.d_model)


@torch.no_grad()
def test_a_prediction_follows_from_embedding_aggregates_and_decayed_counts(model: LargeActionModel) -> None:
    history, as_of = daily(6, (6,)), START + 6 * DAY
    empty = {f"query_{name}": np.full(1, MISSING, np.int32) for name in LAYOUT.categorical}
    empty |= {"query_amount": np.full(1, np.nan, np.float32), "query_hour_of_week": np.full(1, HOUR)}
    queried = dataclasses.replace(history, queries=history.queries | empty)
    summary = torch.from_numpy(aggregates(LAYOUT, queried.events, queried.queries))
    visible = torch.zeros(1, LAYOUT.queries_per_block, LAYOUT.block_events, dtype=torch.bool)
    visible[0, 0, :6] = True
    counts = model.decayed_counts(batch_of(LAYOUT, [queried]), visible)[:, :1]
    embedding = torch.from_numpy(embed(model, [history], as_of))
    (expected,) = model.predict_targets(embedding[None], summary[None], counts)["reply"]
    (predictions,) = predict_queries(Artifact(model, {}, {}, ""), [queried], "reply")
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-5)
