"""The transformer: attention masks, which inputs change a prediction and which must not; the saved artifact."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lam_spark.errors import ModelError
from lam_spark.model import artifact as artifact_module
from lam_spark.model.artifact import (
    CARD,
    FORMAT,
    WEIGHTS,
    Artifact,
    Calibration,
    digest_of,
    open_artifact,
    read_artifact,
    save_artifact,
)
from lam_spark.model.attention import attention_mask, query_event_mask
from lam_spark.model.transformer import Batch, LargeActionModel, _Bins
from lam_spark.scoring.predictor import predict_queries
from lam_spark.training.losses import Period, loss_of
from lam_spark.training_data.packing import Customer
from tests.support.tiny import DAY, LAYOUT, SIZE, START, batch_of, customer, layout, random_model

WHOLE = Period(0, START + 1000 * DAY, ("train",))


def daily(
    events: int, query_days: tuple[int, ...] = (), seed: int = 0, first: int = 0, delay: int = 0
) -> Customer:
    """A customer with one event a day from day `first` on, and queries this many days after it."""
    start = START + first * DAY
    return customer(
        LAYOUT,
        [start + day * DAY for day in range(events)],
        [start + day * DAY for day in query_days],
        seed=seed,
        delays=delay,
    )


def predict(model: LargeActionModel, customers: list[Customer]) -> list[Any]:
    """The logits of each customer's queries, packed as in scoring."""
    return predict_queries(Artifact(model, {}, {}, ""), customers, "reply")


@pytest.fixture
def model() -> LargeActionModel:
    return random_model()


@pytest.fixture
def batch() -> Batch:
    """One block: customers of 6 and 4 events, with queries after 3 and 6, and after 4 events."""
    return batch_of(LAYOUT, [daily(6, (3, 6)), daily(4, (4,), seed=1)])


def mask_of(batch: Batch) -> Tensor:
    mask = attention_mask(batch["window"], query_event_mask(batch))
    assert mask.shape == (1, 20, 20)
    return mask[0]


def test_an_event_attends_to_its_own_window_up_to_itself(batch: Batch) -> None:
    mask = mask_of(batch)
    window = batch["window"][0]
    for row in range(16):
        expected = [column for column in range(row + 1) if window[column] == window[row]]
        assert mask[row].nonzero().flatten().tolist() == expected


def test_a_query_attends_to_the_events_before_it_and_to_itself(batch: Batch) -> None:
    mask = mask_of(batch)
    attended = {
        (int(batch["query_window"][0, q]), int(batch["query_time"][0, q] - START) // DAY): mask[16 + q]
        .nonzero()
        .flatten()
        .tolist()
        for q in range(3)
    }
    assert attended == {(1, 3): [0, 1, 2, 16], (1, 6): [0, 1, 2, 3, 4, 5, 17], (2, 4): [6, 7, 8, 9, 18]}


def test_no_other_slot_attends_to_a_query(batch: Batch) -> None:
    mask = mask_of(batch)
    assert mask[:, 16:].nonzero().tolist() == [[16 + q, q] for q in range(4)]


EVENT_COLUMNS = (
    "hour_of_week",
    "event_action",
    "event_item",
    "event_amount",
    "known_at",
    "log_delay_hours",
)


@pytest.mark.parametrize("column", EVENT_COLUMNS)
@torch.no_grad()
def test_a_changed_event_changes_only_itself_and_later_slots_of_its_window(
    model: LargeActionModel, batch: Batch, column: str
) -> None:
    before = model(batch)
    changed = {name: values.clone() for name, values in batch.items()}
    changed[column][0, 4] += 1  # the fifth event of the first customer
    if column == "known_at":
        changed[column][0, 4] += DAY // 2
    after = model(changed)
    changed_slots = (
        (before.event_hidden_BTD != after.event_hidden_BTD).any(-1)[0].nonzero().flatten().tolist()
    )
    assert changed_slots == [4, 5]
    logits = (before.targets["reply"] != after.targets["reply"])[0].nonzero().flatten().tolist()
    assert logits == [1]  # the query after all six events, not the one after three or the other customer's


@pytest.mark.parametrize("column", ["query_item", "query_amount", "query_hour_of_week", "aggregates"])
@torch.no_grad()
def test_a_changed_query_changes_only_its_own_prediction(
    model: LargeActionModel, batch: Batch, column: str
) -> None:
    before = model(batch)
    changed = {name: values.clone() for name, values in batch.items()}
    changed[column][0, 1] += 1
    after = model(changed)
    assert torch.equal(before.event_hidden_BTD, after.event_hidden_BTD)
    changed_logits = before.targets["reply"] != after.targets["reply"]
    assert changed_logits[0].tolist() == [False, True, False, False]


def test_a_prediction_does_not_depend_on_other_customers_in_the_block(model: LargeActionModel) -> None:
    customers = [
        daily(n, (0, n // 2, n), seed=n, first=100 * number)
        for number, n in enumerate((5, 1, 9, 30, 0, 16, 7))
    ]
    predictions = predict(model, customers)
    for history, expected in zip(customers, predictions, strict=True):
        np.testing.assert_allclose(predict(model, [history])[0], expected, atol=1e-5)
    assert len(np.unique(np.concatenate(predictions))) == 3 * len(customers)


def test_padding_does_not_change_a_prediction() -> None:
    large = random_model(layout(block_events=40, queries_per_block=9))
    small = LargeActionModel(LAYOUT, large.size, large.normaliser).eval()
    small.load_state_dict(large.state_dict())
    history = daily(7, (2, 7))
    np.testing.assert_allclose(predict(large, [history])[0], predict(small, [history])[0], atol=1e-5)


@pytest.mark.parametrize("events", [3, 16, 17, 24, 30, 41])
def test_events_after_a_query_do_not_change_its_prediction(model: LargeActionModel, events: int) -> None:
    whole = daily(60, (events // 2, events))
    truncated = Customer({name: values[:events] for name, values in whole.events.items()}, whole.queries)
    np.testing.assert_allclose(predict(model, [truncated])[0], predict(model, [whole])[0], atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2])
@torch.no_grad()
def test_the_order_of_events_matters(n_layers: int) -> None:
    """Without positions, a single layer would see the events before a query as a set."""
    model = random_model(size=dataclasses.replace(SIZE, n_layers=n_layers))
    batch = batch_of(LAYOUT, [daily(6, (6,))])
    swapped = {name: values.clone() for name, values in batch.items()}
    for name in ("hour_of_week", "event_action", "event_item", "event_amount"):
        swapped[name][0, [1, 4]] = batch[name][0, [4, 1]]
    before, after = (model(b).targets["reply"][0, 0] for b in (batch, swapped))
    assert abs(float(before - after)) > 1e-3


def test_the_time_since_the_last_event_matters(model: LargeActionModel) -> None:
    with torch.no_grad():
        batch = batch_of(LAYOUT, [daily(6, (6,))])
        later = dict(batch, query_time=batch["query_time"] + 30 * DAY)
        before, after = (model(b).targets["reply"][0, 0] for b in (batch, later))
    assert abs(float(before - after)) > 1e-3


def test_the_gradient_reaches_every_parameter(model: LargeActionModel) -> None:
    batch = batch_of(LAYOUT, [daily(16, (5, 9, 16), seed=s, delay=s * DAY) for s in range(4)])
    loss = loss_of(model, batch, WHOLE, with_next=True, with_targets=True)
    (loss.next_sum + loss.target_sums.sum()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_missing_numbers_give_finite_predictions_and_gradients(model: LargeActionModel) -> None:
    one = daily(6, (3, 6))
    one.events["amount"][:] = np.nan
    one.queries["query_amount"][:] = np.nan
    batch = batch_of(LAYOUT, [one])
    loss = loss_of(model, batch, WHOLE, with_next=True, with_targets=True)
    (loss.next_sum + loss.target_sums.sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert np.isfinite(predict(model, [one])[0]).all()


def test_missing_zero_and_almost_zero_give_different_predictions(model: LargeActionModel) -> None:
    customers = [daily(6, (6,)) for _ in range(3)]
    for one, amount in zip(customers, (np.nan, 0.0, 1e-9), strict=True):
        one.queries["query_amount"][:] = amount
    logits = np.sort(np.concatenate(predict(model, customers)))
    assert (np.diff(logits) > 1e-3).all()


def test_an_empty_history_gives_a_finite_prediction(model: LargeActionModel) -> None:
    full = daily(16, ())  # fills the block's event slots
    for customers in ([daily(0, (0,))], [full, daily(0, (0,))]):
        assert np.isfinite(predict(model, customers)[-1]).all()
    with torch.no_grad():
        assert bool(model(batch_of(LAYOUT, [full, daily(0, (0,))])).targets["reply"].isfinite().all())


def test_a_new_model_predicts_zero() -> None:
    model = LargeActionModel(LAYOUT, random_model().size, random_model().normaliser).eval()
    assert predict(model, [daily(6, (3, 6))])[0].tolist() == [0.0, 0.0]


def test_ids_newer_than_the_model_are_unknown(model: LargeActionModel) -> None:
    predictions = []
    for item in (1, 99):
        one = daily(3, (3,))
        one.events["item"][:] = item
        one.queries["query_item"][:] = item
        predictions += predict(model, [one])  # in separate blocks: rounding depends on the slot
    np.testing.assert_allclose(*predictions, rtol=1e-6)


# The artifact.


@pytest.fixture
def saved(model: LargeActionModel, tmp_path: Path) -> tuple[Path, str]:
    """A folder with a model, and its digest."""
    digest = save_artifact(tmp_path, model, {"reply": Calibration(1.25, -0.5)}, {"seed": 7})
    return tmp_path, digest


def test_a_saved_model_gives_bitwise_equal_predictions(
    model: LargeActionModel, saved: tuple[Path, str]
) -> None:
    folder, digest = saved
    opened = open_artifact(*read_artifact(folder), digest)
    assert not opened.model.training
    assert opened.calibration == {"reply": Calibration(1.25, -0.5)}
    assert opened.facts == {"seed": 7}
    assert opened.digest == digest
    assert opened.model.layout == model.layout
    customers = [daily(9, (4, 9)), daily(3, (3,), seed=1)]
    for expected, actual in zip(predict(model, customers), predict(opened.model, customers), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_the_same_model_saved_twice_has_one_digest(
    model: LargeActionModel, saved: tuple[Path, str], tmp_path: Path
) -> None:
    digest = save_artifact(tmp_path / "again", model, {"reply": Calibration(1.25, -0.5)}, {"seed": 7})
    assert digest == saved[1]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [CARD, WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
@pytest.mark.parametrize("position", [10, -10])
def test_a_flipped_byte_is_detected(saved: tuple[Path, str], name: str, position: int) -> None:
    folder, digest = saved
    content = bytearray((folder / name).read_bytes())
    content[position] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"they were changed or damaged\. Restore them or train again"):
        open_artifact(*read_artifact(folder), digest)


def test_the_digest_of_another_model_is_refused(saved: tuple[Path, str]) -> None:
    folder, digest = saved
    with pytest.raises(ModelError) as caught:
        open_artifact(*read_artifact(folder), "0" * 64)
    assert str(caught.value) == (
        f"expected model files with digest {'0' * 12}… as registered, got {digest[:12]}…: they were changed or "
        "damaged. Restore them or train again"
    )


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_missing_file_raises_a_model_error(saved: tuple[Path, str], name: str) -> None:
    folder, _ = saved
    (folder / name).unlink()
    with pytest.raises(
        ModelError, match=r"expected model.safetensors and model.json in .*run the stage 'train'"
    ):
        read_artifact(folder)


def test_weights_of_another_shape_are_refused(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = saved
    save_artifact(tmp_path / "other", random_model(layout(sizes=(6, 12))), {}, {})
    weights = (tmp_path / "other" / WEIGHTS).read_bytes()
    card = (folder / CARD).read_bytes()
    with pytest.raises(ModelError, match="of one model, got files that do not fit each other"):
        open_artifact(weights, card, digest_of(weights, card))


@pytest.mark.parametrize("key", ["format", "layout", "size", "normaliser", "calibration", "facts"])
def test_a_card_without_a_required_key_raises_a_model_error(saved: tuple[Path, str], key: str) -> None:
    weights, card = read_artifact(saved[0])
    values = json.loads(card)
    del values[key]
    incomplete = json.dumps(values).encode()
    with pytest.raises(ModelError, match="of one model, got files that do not fit each other"):
        open_artifact(weights, incomplete, digest_of(weights, incomplete))


def test_another_format_is_refused(saved: tuple[Path, str]) -> None:
    weights, card = read_artifact(saved[0])
    other = json.dumps({**json.loads(card), "format": FORMAT + 1}).encode()
    with pytest.raises(ModelError) as caught:
        open_artifact(weights, other, digest_of(weights, other))
    assert str(caught.value) == (
        f"expected format {FORMAT} in model.json, got {FORMAT + 1}: the model was made by another version. "
        "Run the stage 'train' again"
    )


_unpickled: list[str] | None = None
_hooks: list[Any] = []


def _record_unpickling(event: str, arguments: tuple[Any, ...]) -> None:
    if _unpickled is not None and event == "pickle.find_class":
        _unpickled.append(str(arguments))


@pytest.fixture
def unpickled() -> Iterator[list[str]]:
    """Classes unpickled during the test, from Python's audit events."""
    global _unpickled
    if _record_unpickling not in _hooks:  # an audit hook cannot be removed
        sys.addaudithook(_record_unpickling)
        _hooks.append(_record_unpickling)
    _unpickled = []
    yield _unpickled
    _unpickled = None


def test_opening_a_model_unpickles_nothing(saved: tuple[Path, str], unpickled: list[str]) -> None:
    folder, digest = saved
    open_artifact(*read_artifact(folder), digest)
    assert unpickled == []


def test_the_artifact_module_imports_nothing_that_unpickles() -> None:
    tree = ast.parse(Path(artifact_module.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert not imported & {"pickle", "cloudpickle", "joblib", "dill", "shelve"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "torch.load" not in called


def test_a_number_sets_the_bins_below_it_to_one() -> None:
    bins = _Bins(((0.0, 1.0, 3.0), (2.0,)), 3)
    encoded = bins(torch.tensor([[0.5, 2.0], [2.0, 9.0], [-1.0, 0.0], [9.0, 1.0]]))
    first, second = encoded.unbind(-2)
    assert first.tolist() == [[0.5, 0, 0], [1, 0.5, 0], [0, 0, 0], [1, 1, 0]]
    assert not second.any()  # a single edge bounds no bin
