"""Targets of kind `value` and `next`: their distributions, judges, first answers, and a training of all kinds."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lam_spark.errors import ModelError
from lam_spark.model.artifact import open_artifact, read_artifact
from lam_spark.model.decayed_counts import counter_slices, num_counters
from lam_spark.model.metrics import Float, auc, fit_logistic_calibration, log_loss, sigmoid
from lam_spark.model.transformer import _DecayedCountTerm
from lam_spark.model.value import expected_value, median_error, median_value, value_loss
from lam_spark.scoring.predictor import predict_queries
from lam_spark.sequences.tokens import FIRST_VALUE
from lam_spark.training.launch import worker
from lam_spark.training.normalisation import query_statistics
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.validation import ValidationMetrics, Validator
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.loader import files_of_rank
from lam_spark.training_data.packing import Customer, unfold
from tests.support.learnable import SHAPE as BINARY
from tests.support.learnable import person, specification
from tests.support.tiny import SIZE, blocks_of, random_model, write_blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

SHAPE = dataclasses.replace(
    BINARY,
    targets=(Target("reply"), Target("amount_spent", "value"), Target("items", "next", "item", 6)),
)
WORLD = LocalGroup()


def shopper(number: int) -> Customer:
    """Whoever is asked about a high item spends the more the higher it is; the items that follow are the next three."""
    one = person(number)
    asked = one.queries["query_item"]
    noise = np.random.default_rng(number).normal(size=len(asked)) * 0.3
    one.queries["label_amount_spent"] = np.where(asked > 5, np.exp(asked - 5.0 + noise), 0.0).astype(
        np.float32
    )
    before = np.searchsorted(one.events["event_time"], one.queries["query_time"]) - 1
    last = one.events["item"][before.clip(0)] - 3
    one.queries["label_items"] = ((np.arange(6) - last[:, None] - 1) % 6 < 3).astype(np.float32)
    return one


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a training of all three kinds, and what it told."""
    folder = tmp_path_factory.mktemp("kinds")
    made = blocks_of(SHAPE, [shopper(number) for number in range(24)])
    url = write_blocks(folder / "all.parquet", SHAPE, made)
    spec = specification(folder / "unused", [[]], finetune_epochs=12, patience=12)
    spec = dataclasses.replace(
        spec,
        layout=SHAPE,
        all_urls=(url,),
        queried_urls=(url,),
        target_weights=(1.0, 1.0, 1.0),
        folder=str(folder),
    )
    spec.save(folder / "spec.json")
    worker.main([str(folder / "spec.json")])
    lines = (folder / worker.PROGRESS_FILE).read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def test_one_training_learns_all_kinds(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    last = trained[1][-1]["facts"]
    assert last["validation_AUC"] > 0.95
    assert last["validation_items_macro_AUC"] > 0.9
    amounts = np.concatenate([shopper(n).queries["label_amount_spent"][4:6] for n in range(24)])
    share, spread = (amounts > 0).mean(), np.log(amounts[amounts > 0]).std()
    same_for_all = (
        -share * math.log(share) - (1 - share) * math.log(1 - share) + share * (0.5 + math.log(spread))
    )
    assert last["validation_amount_spent_loss"] < same_for_all - 0.3
    assert (
        last["validation_amount_spent_mean_absolute_error"] < 0.7 * amounts.mean()
    )  # what saying nothing costs


def test_the_artifact_answers_every_kind(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, told = trained
    artifact = open_artifact(*read_artifact(folder), told[-1]["digest"])
    assert set(artifact.calibration) == {"reply", "amount_spent", "items"}
    assert artifact.model.layout == SHAPE
    people = [shopper(100), shopper(101)]
    for target, shape in (("reply", (7,)), ("amount_spent", (7, 3)), ("items", (7, 6))):
        answers = predict_queries(artifact, people, target)
        assert [answer.shape for answer in answers] == [shape, shape]
        alone = predict_queries(artifact, people[1:], target)[0]
        np.testing.assert_allclose(answers[1], alone, rtol=1e-4, atol=1e-5)


def test_a_specification_comes_back_from_its_file(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    spec = TrainingSpec.load(trained[0] / "spec.json")
    assert spec.layout == SHAPE
    assert spec.numeric_edges == ((-1.0, 0.0, 1.0),)


@pytest.mark.parametrize("logit", [-3.0, -0.2, 0.2, 3.0])
def test_mean_and_median_are_those_of_the_distribution(logit: float) -> None:
    answer = torch.tensor([logit, 1.2, math.log(0.6)], dtype=torch.float64)
    torch.manual_seed(0)
    drawn = torch.exp(1.2 + 0.6 * torch.randn(400_000, dtype=torch.float64))
    drawn[torch.rand(len(drawn)) > torch.sigmoid(torch.tensor(logit))] = 0.0
    assert float(expected_value(answer)) == pytest.approx(float(drawn.mean()), rel=0.01)
    assert float(median_value(answer)) == pytest.approx(float(drawn.median()), rel=0.02, abs=1e-9)


def test_the_right_spread_has_the_least_loss() -> None:
    torch.manual_seed(0)
    label = torch.exp(1.0 + 0.5 * torch.randn(10_000))

    def loss(mean: float, log_std: float) -> float:
        return float(value_loss(torch.tensor([2.0, mean, log_std]).expand(len(label), 3), label).mean())

    best = loss(1.0, math.log(0.5))
    assert all(
        loss(*at) > best for at in ((0.8, math.log(0.5)), (1.2, math.log(0.5)), (1.0, -0.9), (1.0, -0.4))
    )
    assert math.isfinite(loss(1.0, -50.0))


def test_the_right_median_has_the_least_error() -> None:
    torch.manual_seed(0)
    label = torch.exp(1.0 + 0.5 * torch.randn(10_000)) * (torch.rand(10_000) < 0.8)

    def error(mean: float) -> float:
        answer = torch.tensor([math.log(0.8 / 0.2), mean, math.log(0.5)]).expand(len(label), 3)
        assert torch.equal(median_error(answer, label), (median_value(answer) - label).abs())
        return float(median_error(answer, label).mean())

    assert all(error(mean) > error(1.0) for mean in (0.8, 1.2))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1e-6, 2.0])
def test_the_gradient_of_the_medians_error_stays_finite(logit: float) -> None:
    answer = torch.tensor([logit, 3.0, 0.0], requires_grad=True)
    median_error(answer, torch.tensor(5.0)).backward()
    assert answer.grad is not None
    assert bool(answer.grad.isfinite().all())
    assert float(answer.grad[0]) == 0.0  # the chance is for the likelihood to say
    assert bool(answer.grad[1] != 0) == (logit > 0)


def test_errors_are_measured_in_a_usual_amount() -> None:
    model = random_model(SHAPE)
    constant = torch.tensor([0.0, math.log(40.0), math.log(0.5)])
    model.initialise_targets({"amount_spent": constant})
    assert model.typical_amount == {"amount_spent": pytest.approx(40.0)}


def test_a_judge_of_next_gives_what_its_rows_would(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    logits = (rng.normal(size=(500, 3)) + 2 * labels - 1).astype(np.float32)
    judge = Validator(Target("items", "next", "item", 3))
    for rows in (slice(0, 200), slice(200, 500)):
        judge.add(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows]))
    verdict = judge.verdict(WORLD)
    wide, flat = logits.astype(float), labels.astype(float)
    assert verdict.loss == pytest.approx(log_loss(wide.ravel(), flat.ravel()), rel=1e-12)
    areas = [auc(wide[:, value], flat[:, value]) for value in range(3)]
    assert verdict.measures["macro AUC"] == pytest.approx(np.mean(areas), abs=1e-3)
    slope, intercept = fit_logistic_calibration(wide.ravel(), flat.ravel())
    assert verdict.calibration.slope == pytest.approx(slope, rel=1e-3)
    assert verdict.calibration.intercept == pytest.approx(intercept, abs=1e-3)
    assert verdict.excess < 0  # it knows something


def tied(rng: np.random.Generator, count: int) -> Float:
    """Logits of a spread of two; every third is one of a few."""
    logits = rng.normal(size=count) * 2
    logits[::3] = np.rint(logits[::3] * 2) / 2
    return logits


def far(rng: np.random.Generator, count: int) -> Float:
    """The same, but every fiftieth is beyond the bins."""
    logits = tied(rng, count)
    logits[::50] = rng.choice([-1, 1], count // 50) * rng.uniform(12, 40, count // 50)
    return logits


@pytest.mark.parametrize(
    ("drawn", "of_area", "of_slope", "of_intercept"), [(tied, 1e-4, 1e-5, 1e-5), (far, 1e-4, 1e-4, 1e-4)]
)
@pytest.mark.parametrize("seed", range(3))
def test_bins_give_what_the_rows_of_a_binary_target_would(
    drawn: Callable[[np.random.Generator, int], Float],
    of_area: float,
    of_slope: float,
    of_intercept: float,
    seed: int,
) -> None:
    """Of those beyond the bins, one in ten is wrong: a calibration that saw them at 12 would be too steep by 0.1."""
    rng = np.random.default_rng(seed)
    logits = drawn(rng, 20_000).astype(np.float32).astype(np.float64)
    labels = (rng.random(20_000) < sigmoid(0.8 * logits - 1)) ^ (
        (abs(logits) > 12) & (rng.random(20_000) < 0.1)
    )
    judge = Validator(Target("a"))
    judge.add(torch.from_numpy(logits).float(), torch.from_numpy(labels).float())
    verdict = judge.verdict(WORLD)
    yes = labels.astype(np.float64)
    assert verdict.loss == pytest.approx(log_loss(logits, yes), rel=1e-12)
    assert verdict.naive_loss == pytest.approx(
        log_loss(np.full(20_000, math.log(yes.mean() / (1 - yes.mean()))), yes)
    )
    assert verdict.measures == {"AUC": pytest.approx(auc(logits, yes), abs=of_area)}
    slope, intercept = fit_logistic_calibration(logits, yes)
    assert verdict.calibration.slope == pytest.approx(slope, abs=of_slope)
    assert verdict.calibration.intercept == pytest.approx(intercept, abs=of_intercept)


def test_the_farthest_numbers_fall_into_the_outermost_bins() -> None:
    judge = Validator(Target("a"))
    judge.add(torch.tensor([3e38, 3e37, -3e38]), torch.tensor([1.0, 0.0, 0.0]))
    verdict = judge.verdict(WORLD)
    assert verdict.measures["AUC"] == 0.75
    assert verdict.loss == pytest.approx(1e37)


class Meeting(LocalGroup):
    """A rank that is a thread of this process."""

    def __init__(self, barrier: threading.Barrier, given: list[torch.Tensor]) -> None:
        self.barrier, self.given = barrier, given

    def begin_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.given.append(values)
        self.barrier.wait(timeout=60)
        return lambda: torch.stack(self.given).sum(dim=0)


def drawn_answers(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """900 answers that know something; the first hundred have nothing that came true."""
    torch.manual_seed(0)
    shape = (900, target.values) if target.kind == "next" else (900,)
    came = (torch.rand(shape) < 0.3) & (torch.arange(900) >= 100).view(-1, *[1] * (len(shape) - 1))
    logit = torch.randn(shape) * 2 + came
    if target.kind != "value":
        return logit, came.float()
    amount = torch.exp(1.0 + 0.5 * torch.randn(900)) * came
    return torch.stack([logit, torch.randn(900) + 1, torch.randn(900)], dim=1), amount


OF_EACH_KIND = pytest.mark.parametrize(
    "target", [Target("a"), Target("a", "value"), Target("a", "next", "item", 3)], ids=lambda t: t.kind
)


@OF_EACH_KIND
def test_ranks_with_parts_of_the_answers_say_what_one_says_with_all(target: Target) -> None:
    """One rank has no questions, one only such that nothing followed."""
    answers, labels = drawn_answers(target)
    alone = Validator(target)
    alone.add(answers, labels)
    expected = alone.verdict(WORLD)
    parts: list[list[slice]] = [[slice(0, 100)], [], [slice(100, 101), slice(101, 500)], [slice(500, 900)]]
    barrier, given = threading.Barrier(len(parts)), list[torch.Tensor]()

    def judged(mine: list[slice]) -> ValidationMetrics:
        judge = Validator(target)
        for rows in mine:
            judge.add(answers[rows], labels[rows])
        return judge.verdict(Meeting(barrier, given))

    with ThreadPoolExecutor(len(parts)) as pool:
        verdicts = list(pool.map(judged, parts))
    assert all(verdict == verdicts[0] for verdict in verdicts)
    assert verdicts[0].measures.keys() == expected.measures.keys()
    for found, wanted in zip(figures(verdicts[0]), figures(expected), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)
    assert len({values.numel() for values in given}) == 1


def figures(verdict: ValidationMetrics) -> list[float]:
    fitted = (verdict.calibration.slope, verdict.calibration.intercept)
    return [verdict.loss, verdict.naive_loss, verdict.unit, *verdict.measures.values(), *fitted]


@OF_EACH_KIND
def test_a_judge_holds_no_more_for_more_answers(target: Target) -> None:
    answers, labels = drawn_answers(target)
    judge = Validator(target)
    judge.add(answers, labels)
    held = len(pickle.dumps(judge))
    for _ in range(9):
        judge.add(answers, labels)
    assert len(pickle.dumps(judge)) == held


def test_a_judge_of_amounts_sets_the_sum_right() -> None:
    torch.manual_seed(0)
    answers = torch.tensor([[1.0, 2.0, -0.7]]).repeat(200, 1)
    labels = torch.where(torch.rand(200) < 0.7, torch.exp(1.0 + torch.randn(200)), 0.0)
    judge = Validator(Target("amount", "value"))
    judge.add(answers, labels)
    verdict = judge.verdict(WORLD)
    total = float(expected_value(answers).sum()) * verdict.calibration.slope
    assert total == pytest.approx(float(labels.sum()), rel=1e-4)
    assert verdict.measures["mean absolute error"] == pytest.approx(
        float((labels - median_value(answers)).abs().mean()), rel=1e-4
    )
    assert verdict.loss == pytest.approx(float(value_loss(answers, labels).mean()), rel=1e-6)
    share, spread = float((labels > 0).double().mean()), float(np.log(labels[labels > 0].numpy()).std())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert verdict.unit == pytest.approx(entropy + share)
    assert verdict.naive_loss == pytest.approx(entropy + share * (0.5 + math.log(spread)), rel=1e-6)


def test_equal_amounts_have_the_least_spread() -> None:
    """Whatever rounding leaves of the variance."""
    labels = torch.tensor([0.0, *[1e6 / 3] * 999])
    judge = Validator(Target("amount", "value"))
    judge.add(torch.zeros(1000, 3), labels)
    entropy = -0.999 * math.log(0.999) - 0.001 * math.log(0.001)
    assert judge.verdict(WORLD).naive_loss == pytest.approx(entropy + 0.999 * (0.5 - 3))


@pytest.mark.parametrize(
    ("target", "answers", "labels"),
    [
        (Target("a"), [0.1, 0.2], [1.0, 1.0]),
        (Target("a", "value"), [[0.1, 0.2, 0.3]], [0.0]),
        (Target("a", "next", "item", 2), [[0.1, 0.2]], [[0.0, 0.0]]),
        (Target("a", "next", "item", 2), [[0.1, 0.2], [0.3, 0.4]], [[1.0, 0.0], [1.0, 0.0]]),
    ],
)
def test_nothing_to_judge_by_is_said(target: Target, answers: list[Any], labels: list[Any]) -> None:
    judge = Validator(target)
    judge.add(torch.tensor(answers), torch.tensor(labels))
    with pytest.raises(ModelError, match=r"the validation period has \d examples of 'a'.*Move split"):
        judge.verdict(WORLD)


def test_amounts_that_are_never_nothing_are_judged() -> None:
    """A monthly bill, say: there is no chance of nothing to be told, only how much."""
    rng = np.random.default_rng(5)
    logs = rng.normal(3.0, 0.5, 400)
    losses = []
    for mean in (3.0, 0.0):
        judge = Validator(Target("bill", "value"))
        told = torch.tensor([[12.0, mean, math.log(0.5)]]).expand(len(logs), 3)
        judge.add(told, torch.from_numpy(np.exp(logs)))
        verdict = judge.verdict(WORLD)
        losses.append(verdict.loss)
        assert verdict.unit == 1.0
        assert verdict.naive_loss == pytest.approx(0.5 + math.log(logs.std()))
    assert losses[0] == pytest.approx(0.5 + math.log(0.5), abs=0.1)
    assert losses[1] > losses[0] + 10


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("target", "answers"),
    [
        (Target("a"), [0.1, 0.2, 0.3]),
        (Target("a", "value"), [[0.1, 0.2, 0.3]] * 3),
        (Target("a", "next", "item", 2), [[0.1, 0.2]] * 3),
    ],
)
def test_a_score_that_is_no_number_shows_in_the_loss(
    target: Target, answers: list[Any], wrong: float
) -> None:
    given = torch.tensor(answers)
    given.view(3, -1)[1, 0] = wrong
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    judge = Validator(target)
    for rows in (slice(0, 2), slice(2, 3)):
        judge.add(given[rows], labels[rows] if target.kind == "next" else labels[rows, 0])
    assert not math.isfinite(judge.verdict(WORLD).loss)


def test_untrained_answers_are_the_constants_of_the_training_period(tmp_path: Path) -> None:
    people = [shopper(number) for number in range(10)]
    url = write_blocks(tmp_path / "a.parquet", SHAPE, blocks_of(SHAPE, people))
    constants = query_statistics(files_of_rank([url], 0, 1), SHAPE, WORLD, bins=8).constants
    early = slice(0, 4)  # the training period's
    yes = np.concatenate([one.queries["label_reply"][early] for one in people])
    odds = (yes.sum() + 0.5) / ((1 - yes).sum() + 0.5)
    assert float(constants["reply"]) == pytest.approx(math.log(odds), rel=1e-5)
    spent = np.concatenate([one.queries["label_amount_spent"][early] for one in people])
    logs = np.log(spent[spent > 0])
    found = [math.log((len(logs) + 0.5) / (len(spent) - len(logs) + 0.5)), logs.mean(), math.log(logs.std())]
    assert constants["amount_spent"].tolist() == pytest.approx(found, rel=1e-4)
    items = np.concatenate([one.queries["label_items"][early] for one in people]).sum(axis=0)
    assert constants["items"].tolist() == pytest.approx(
        np.log((items + 0.5) / (40 - items + 0.5)).tolist(), rel=1e-4
    )


def test_amounts_of_any_spread_begin_where_the_spread_can_be_learned(tmp_path: Path) -> None:
    """Over everybody they differ by more than the widest spread that an answer may have."""
    people = [shopper(number) for number in range(10)]
    for number, one in enumerate(people):
        one.queries["label_amount_spent"][:] = 10.0 ** (number - 3)
    url = write_blocks(tmp_path / "a.parquet", SHAPE, blocks_of(SHAPE, people))
    start = query_statistics(files_of_rank([url], 0, 1), SHAPE, WORLD, bins=8).constants["amount_spent"]
    answer = start.expand(4, 3).clone().requires_grad_()
    amounts = torch.tensor([9.0, 10.0, 11.0, 12.0])
    value_loss(answer, amounts).sum().backward()  # type: ignore[no-untyped-call]
    assert answer.grad is not None
    assert (answer.grad[:, 2] != 0).all()


def test_a_layout_comes_back_from_json() -> None:
    assert Layout.from_json(json.loads(json.dumps(SHAPE.to_json()))) == SHAPE


@pytest.mark.parametrize("bins", [4, 0])
def test_the_bins_of_an_aggregate_are_equally_full_in_the_training_period(tmp_path: Path, bins: int) -> None:
    made = blocks_of(SHAPE, [shopper(number) for number in range(30)])
    url = write_blocks(tmp_path / "a.parquet", SHAPE, made)
    found = query_statistics(files_of_rank([url], 0, 1), SHAPE, WORLD, bins)
    whole = unfold(SHAPE, {name: np.stack([block[name] for block in made]) for name in made[0]})
    rows = whole["aggregates"][whole["query_split"] == SPLIT_IDS["train"]]
    assert len(rows) == 120
    assert len(found.edges) == rows.shape[1]
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-5)
    if not bins:
        assert not any(found.edges)
        return
    assert max(map(len, found.edges)) == bins + 1
    for edges, values in zip(found.edges, rows.T, strict=True):
        assert list(edges) == sorted(set(edges))
        exact = np.quantile(values, np.arange(bins + 1) / bins, method="inverted_cdf")
        for wanted in exact:  # each to a 32nd below it
            assert any(0 <= wanted - edge <= 1 / 32 for edge in edges)
        assert all(np.any((exact >= edge) & (exact <= edge + 1 / 32)) for edge in edges)


def test_habits_count_by_value_and_by_what_the_sequence_says() -> None:
    target = SHAPE.targets[2]
    own = _DecayedCountTerm(target, SHAPE, SIZE)
    torch.nn.init.zeros_(own.sequence_weight.weight)
    torch.nn.init.zeros_(own.sequence_weight.bias)
    inner, decayed_counts = (
        torch.randn(1, 2, SIZE.d_model),
        torch.rand(1, 2, len(SHAPE.half_life_days), num_counters(SHAPE)),
    )
    assert not own(inner, decayed_counts).any()
    with torch.no_grad():
        own.value_weight_HV[1, 4] = 2.0
        added = own(inner, decayed_counts)
        first = counter_slices(SHAPE)["item"].start + FIRST_VALUE
        assert added[0, :, 4].tolist() == (2 * decayed_counts[0, :, 1, first + 4]).tolist()
        assert added.count_nonzero() == 2
        own.sequence_weight.bias[0] = 1.0
        moved = own(inner, decayed_counts) - added
    torch.testing.assert_close(moved, decayed_counts[:, :, 0, first : first + target.values])
