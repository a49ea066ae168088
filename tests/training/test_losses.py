"""Training losses: the next timestamp group as a set of events, and the targets of labelled queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lam_spark.model.transformer import Batch, LargeActionModel, module_key
from lam_spark.model.value import median_value
from lam_spark.training.losses import Period, in_splits, loss_counts, loss_of, next_group_loss, target_loss
from lam_spark.training_data.layout import Layout, Target
from lam_spark.training_data.packing import Customer
from tests.support.tiny import DAY, LAYOUT, START, batch_of, customer, layout, random_model

NO_NUMBERS = layout(numeric=())
WHOLE = Period(0, START + 1000 * DAY, ("train",))


def on_days(shape: Layout, days: Sequence[float], seed: int = 0) -> Customer:
    return customer(shape, [START + int(day * DAY) for day in days], seed=seed)


def next_loss(model: LargeActionModel, batch: Batch, period: Period = WHOLE) -> tuple[float, float]:
    """Sum and count of the loss of the next timestamp group."""
    with torch.no_grad():
        total, count = next_group_loss(model, batch, model(batch), period)
    return float(total), float(count)


@torch.no_grad()
def test_with_one_event_per_timestamp_the_loss_is_next_event_cross_entropy() -> None:
    """Expected value: every event predicts the next event and the time until then."""
    model = random_model(NO_NUMBERS)
    days = [0, 1, 3, 3.5, 10, 11]
    batch = batch_of(NO_NUMBERS, [on_days(NO_NUMBERS, days)])
    hidden = model(batch).event_hidden_BTD[0]
    expected = 0.0
    for here in range(len(days) - 1):
        for name in NO_NUMBERS.categorical:
            logits = model.next_value[module_key(name)](hidden[here])
            expected += float(F.cross_entropy(logits, batch[f"event_{name}"][0, here + 1].long())) / 2
        mean, log_std = (float(value) for value in model.next_days(hidden[here]))
        log_std = min(max(log_std, -3.0), 3.0)
        z = (math.log(days[here + 1] - days[here] + 1 / 1440) - mean) / math.exp(log_std)
        expected += 0.1 * (z**2 / 2 + log_std)
    total, count = next_loss(model, batch)
    assert total == pytest.approx(expected, rel=1e-4)
    assert count == len(days) - 1


@torch.no_grad()
def test_a_group_of_three_events_has_the_weight_of_a_group_of_one() -> None:
    """Expected value: the last event before predicts each of the three with weight 1/3."""
    model = random_model(NO_NUMBERS)
    model.next_days.weight.zero_()
    model.next_days.bias.zero_()
    batch = batch_of(NO_NUMBERS, [on_days(NO_NUMBERS, [0, 0, 1, 1, 1])])
    hidden = model(batch).event_hidden_BTD[0, 1]
    expected = 0.1 * math.log(1 + 1 / 1440) ** 2 / 2
    for name in NO_NUMBERS.categorical:
        log_p = F.log_softmax(model.next_value[module_key(name)](hidden), -1)
        expected -= float(log_p[batch[f"event_{name}"][0, 2:5].long()].mean()) / 2
    assert next_loss(model, batch) == (pytest.approx(expected, rel=1e-4), 1.0)


@torch.no_grad()
def test_a_missing_number_has_no_loss_and_a_known_one_its_smooth_l1_error() -> None:
    model = random_model()
    person = on_days(LAYOUT, [0, 1])
    losses = []
    for amount in (np.nan, 0.0):
        person.events["amount"][1] = amount
        batch = batch_of(LAYOUT, [person])
        hidden = model(batch).event_hidden_BTD[0, 0]
        losses.append(next_loss(model, batch)[0])
    predicted = model.next_number(hidden)
    error = float(F.smooth_l1_loss(predicted, torch.zeros(1)))
    assert losses[1] - losses[0] == pytest.approx(error, rel=1e-3)


def test_the_order_of_events_with_the_same_timestamp_does_not_matter() -> None:
    model = random_model()
    person = on_days(LAYOUT, [0, 1, 2, 2, 2, 2])
    shuffled = Customer(
        {name: values[[0, 1, 4, 2, 5, 3]] for name, values in person.events.items()}, person.queries
    )
    assert next_loss(model, batch_of(LAYOUT, [person])) == pytest.approx(
        next_loss(model, batch_of(LAYOUT, [shuffled])), rel=1e-5
    )


def test_losses_do_not_depend_on_packing() -> None:
    model = random_model()
    people = [on_days(LAYOUT, days, seed) for seed, days in enumerate([[0, 1, 1, 4], [2, 3], [0, 0, 5]])]
    separate = [next_loss(model, batch_of(LAYOUT, [person])) for person in people]
    total, count = next_loss(model, batch_of(LAYOUT, people))
    assert total == pytest.approx(sum(total for total, _ in separate), rel=1e-5)
    assert count == sum(count for _, count in separate) == 4


@pytest.mark.parametrize(
    ("start", "end", "counted"), [(0, 9, 4), (1, 9, 4), (2, 9, 3), (0, 3, 2), (2, 4, 2), (5, 9, 0)]
)
def test_only_timestamp_groups_of_the_period_count(start: int, end: int, counted: int) -> None:
    """Events on days 0 to 4; the period's first day counts, its end does not."""
    batch = batch_of(LAYOUT, [on_days(LAYOUT, range(5))])
    period = Period(START + start * DAY, START + end * DAY, ())
    assert next_loss(random_model(), batch, period)[1] == counted


def test_a_long_history_in_overlapping_windows_counts_every_event_once() -> None:
    events = 41
    batch = batch_of(LAYOUT, [on_days(LAYOUT, range(events))])
    assert int((batch["window"] > 0).sum()) > events
    assert next_loss(random_model(), batch)[1] == events - 1


def test_events_that_are_not_new_are_no_targets() -> None:
    model = random_model()
    batch = batch_of(LAYOUT, [on_days(LAYOUT, range(5))])
    whole = next_loss(model, batch)
    batch["is_new"][0, :3] = 0
    late = next_loss(model, batch)
    assert (whole[1], late[1]) == (4, 2)
    assert late[0] == pytest.approx(
        next_loss(model, batch, Period(START + 3 * DAY, START + 9 * DAY, ()))[0], rel=1e-6
    )


@pytest.mark.parametrize("days", [[], [0], [0, 0, 0]])
def test_without_a_next_timestamp_group_the_loss_is_zero_and_differentiable(days: list[float]) -> None:
    model = random_model()
    batch = batch_of(LAYOUT, [customer(LAYOUT, [START + int(d) * DAY for d in days], [START + DAY])])
    total, count = next_group_loss(model, batch, model(batch), WHOLE)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0.0)


@torch.no_grad()
def test_only_labelled_queries_of_the_allowed_splits_count() -> None:
    shape = layout(queries_per_block=8)
    model = random_model(shape)
    splits = ("train", "validation", "train", "test", "straddling", "train")
    labels = [1.0, 0.0, math.nan, 1.0, 1.0, 0.0]
    times = [START + (9 + i) * DAY for i in range(6)]
    person = customer(shape, [START, START + DAY], times, split=splits, labels=labels)
    batch = batch_of(shape, [person])
    predictions = model(batch)
    logits = predictions.targets["reply"][0]
    for allowed, slots in (
        (("train",), [0, 5]),
        (("validation",), [1]),
        (("train", "straddling", "validation"), [0, 1, 4, 5]),
        (("score",), []),
    ):
        expected = sum(
            math.log1p(math.exp(float(logits[slot]) * (1 if labels[slot] == 0 else -1))) for slot in slots
        )
        total, count = target_loss(model, batch, predictions, Period(0, 0, allowed))
        assert total.tolist() == pytest.approx([expected], rel=1e-5)
        assert count.tolist() == [len(slots)]
        assert in_splits(batch, allowed)[0].nonzero().flatten().tolist() == (
            [0, 2, 5] if allowed == ("train",) else [slot for slot in range(6) if splits[slot] in allowed]
        )


@torch.no_grad()
def test_every_target_is_counted() -> None:
    shape = layout(targets=(Target("reply"), Target("visit")))
    model = random_model(shape)
    person = customer(shape, [START], [START + DAY, START + 2 * DAY], labels=[1, 0])
    person.queries["label_visit"][0] = math.nan
    batch = batch_of(shape, [person])
    predictions = model(batch)
    reply, visit = (predictions.targets[target.name][0] for target in shape.targets)
    total, count = target_loss(model, batch, predictions, WHOLE)
    expected = [float(F.softplus(-reply[0]) + F.softplus(reply[1])), float(F.softplus(visit[1]))]
    assert count.tolist() == [2, 1]
    assert total.tolist() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_the_loss_of_an_amount_is_its_likelihood_and_the_error_of_the_median() -> None:
    shape = layout(targets=(Target("reply", "value"),))
    model = random_model(shape)
    times = [START + DAY, START + 2 * DAY, START + 3 * DAY]
    batch = batch_of(shape, [customer(shape, [START], times, labels=[0.0, 12.5, math.nan])])
    predictions = model(batch)
    assert predictions.targets["reply"].shape == (1, 4, 3)
    (zero_logit, _, _), (logit, mean, log_std) = predictions.targets["reply"][0, :2].tolist()
    deviation = math.exp(min(1.0, max(-3.0, log_std)))
    normal = torch.distributions.Normal(mean, deviation)
    half_log_two_pi = 0.5 * math.log(2 * math.pi)
    expected = math.log1p(math.exp(zero_logit)) + math.log1p(math.exp(-logit))
    expected += -float(normal.log_prob(torch.tensor(math.log(12.5)))) - half_log_two_pi
    model.typical_amount["reply"] = 4.0
    medians = median_value(predictions.targets["reply"][0, :2]).tolist()
    expected += (medians[0] + abs(medians[1] - 12.5)) / 4.0
    total, count = target_loss(model, batch, predictions, WHOLE)
    assert count.tolist() == [2]
    assert total.tolist() == pytest.approx([expected], rel=1e-5)


@torch.no_grad()
def test_a_next_target_has_one_logit_per_value() -> None:
    shape = layout(targets=(Target("reply", "next", "item", 3),))
    model = random_model(shape)
    labels = [[1, 0, 0], [math.nan] * 3, [0, 0, 0]]
    times = [START + DAY, START + 2 * DAY, START + 3 * DAY]
    batch = batch_of(shape, [customer(shape, [START], times, labels=labels)])
    predictions = model(batch)
    logits = predictions.targets["reply"][0]
    assert logits.shape == (4, 3)
    expected = F.softplus(-logits[0, 0]) + F.softplus(logits[0, 1:]).sum() + F.softplus(logits[2]).sum()
    total, count = target_loss(model, batch, predictions, WHOLE)
    assert count.tolist() == [2]
    assert total.tolist() == pytest.approx([float(expected) / 3], rel=1e-5)


@pytest.mark.parametrize("with_targets", [True, False])
@torch.no_grad()
def test_loss_counts_follow_from_the_data_alone(with_targets: bool) -> None:
    targets = (Target("reply"), Target("spent", "value"), Target("bought", "next", "item", 3))
    shape = layout(targets=targets, queries_per_block=8)
    times = [START + (3 + i) * DAY for i in range(5)]
    split = ("train", "train", "validation", "train", "test")
    people = [
        customer(shape, [START + day * DAY // 2 for day in (0, 1, 1, 4, 7)], times, seed, split)
        for seed in (0, 1)
    ]
    for person in people:
        person.queries["label_spent"][0] = math.nan
        person.queries["label_bought"][[0, 1]] = math.nan
    batch = batch_of(shape, people)
    for period in (WHOLE, Period(START + 2 * DAY, START + 3 * DAY, ("validation",))):
        part = loss_of(random_model(shape), batch, period, with_next=True, with_targets=with_targets)
        counts = loss_counts(batch, period, targets, with_targets).tolist()
        assert counts == [float(part.next_count), *part.target_counts.tolist()]
    assert counts[0] > 0
