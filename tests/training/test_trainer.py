"""The training of one process, from block files to an artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load

from lam_spark.errors import ModelError
from lam_spark.model.artifact import CARD, WEIGHTS, open_artifact, read_artifact
from lam_spark.training.cost import block_flops, forward_flops
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.packing import Block
from tests.support.learnable import SHAPE, TEST, VALIDATION, blocks, specification, take_steps
from tests.support.tiny import SIZE, stack

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

Records = list[dict[str, Any]]
# With half as many an epoch has too few steps for each to be better than the one before.
PEOPLE = 48


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Records]:
    """The folder of a whole training through the worker's own entry point, and what it told."""
    folder = tmp_path_factory.mktemp("trained")
    made = blocks(PEOPLE)
    specification(folder, [made[::2], made[1::2]]).save(folder / "spec.json")
    worker.main([str(folder / "spec.json")])
    lines = (folder / worker.PROGRESS_FILE).read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def losses(told: Records, phase: str) -> list[float]:
    """Validation loss after each epoch."""
    judged = [r for r in told if r["event"] == "epoch" and r["phase"] == phase]
    return [record["validation loss"] for record in judged]


def test_pre_training_learns_what_comes_next(trained: tuple[Path, Records]) -> None:
    before, *_, after = losses(trained[1], "pre-training")
    assert after < before - 0.3


def test_fine_tuning_learns_the_answer(trained: tuple[Path, Records]) -> None:
    falling = losses(trained[1], "fine-tuning")
    assert min(falling) < falling[0]
    assert min(falling) < math.log(2) / 2  # half of what knowing nothing costs


def test_the_epoch_that_validation_chose_is_refitted(trained: tuple[Path, Records]) -> None:
    told = trained[1]
    falling = losses(told, "fine-tuning")
    facts = told[-1]["facts"]
    assert facts["chosen_epoch"] == 1 + int(np.argmin(falling))
    assert facts["validation_loss"] == min(falling)
    refitted = [r["epoch"] for r in told if r["event"] == "epoch" and r["phase"] == "refit"]
    assert refitted == list(range(1, facts["chosen_epoch"] + 1))


def test_the_artifact_opens_under_the_digest_that_was_told(trained: tuple[Path, Records]) -> None:
    folder, told = trained
    assert told[-1]["event"] == "done"
    artifact = open_artifact(*read_artifact(folder), told[-1]["digest"])
    assert artifact.facts == told[-1]["facts"]
    assert artifact.facts["run_id"] == "a test"
    assert artifact.calibration["reply"].slope > 0
    assert artifact.model.layout == SHAPE


def test_every_slot_in_use_is_counted_once_an_epoch(trained: tuple[Path, Records]) -> None:
    facts = trained[1][-1]["facts"]
    slots = sum(int((block["window"] > 0).sum()) for block in blocks(PEOPLE))
    fine = len(losses(trained[1], "fine-tuning"))
    assert facts["tokens"] == slots * (2 + fine + facts["chosen_epoch"])
    events, answers = (block_flops(SHAPE, SIZE, with_targets) for with_targets in (False, True))
    assert 0 < events < answers
    learned = len(blocks(PEOPLE)) * (2 * events + (fine + facts["chosen_epoch"]) * answers)
    events, answers = (forward_flops(SHAPE, SIZE, with_targets) for with_targets in (False, True))
    late = sum(block["event_time"].max() >= VALIDATION for block in blocks(PEOPLE))
    asked = sum((block["query_split"] == SPLIT_IDS["validation"]).any() for block in blocks(PEOPLE))
    judged = 3 * late * events + (1 + fine) * asked * answers
    assert 0 < judged < learned
    assert facts["flops"] == learned + judged
    assert facts["core_seconds"] == pytest.approx(facts["seconds"], abs=0.1)


def test_of_many_validation_blocks_some_files_judge(tmp_path: Path) -> None:
    """By a number that depends on the files alone."""
    made = blocks(24)
    files = [made[number::4] for number in range(4)]

    def judged(most: int, *files: list[Block]) -> list[float]:
        told: Records = []
        spec = specification(tmp_path / f"{most}_{len(files)}", list(files), validation_blocks=most)
        only_pre_train(Trainer(spec, LocalGroup(), told.append))
        return losses(told, "pre-training")[:1]

    every = sum(map(len, files))
    assert judged(every, *files) == judged(1_000_000, *files)
    # By the first of the files, in the order of their names' hashes.
    first = min(range(4), key=lambda number: hashlib.sha256(f"part-{number}.parquet".encode()).digest())
    assert judged(1, *files) == pytest.approx(judged(1_000_000, files[first]), rel=1e-5)
    assert judged(1, *files) != judged(every, *files)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"activation_checkpointing": True}], ids=str)
def test_an_option_trains_to_nearly_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    made, ends = blocks(8), []
    for name, settings in (("plain", {}), ("option", options)):
        told: Records = []
        spec = specification(tmp_path / name, [made], pretrain_epochs=1, finetune_epochs=1, **settings)
        Trainer(spec, LocalGroup(), told.append).fit()
        artifact = open_artifact(*read_artifact(tmp_path / name), told[-1]["digest"])
        assert {weight.dtype for weight in artifact.model.parameters()} == {torch.float32}
        ends.append([losses(told, "pre-training")[-1], losses(told, "fine-tuning")[-1]])
    plain, option = ends
    assert option == pytest.approx(plain, rel=0.02)
    assert (option == plain) == ("activation_checkpointing" in options)


def test_what_teaches_nothing_is_not_computed(tmp_path: Path) -> None:
    """Blocks of the validation period alone take no part in pre-training, and leave its weights as they are."""
    early = blocks(4)
    late = [{name: values.copy() for name, values in block.items()} for block in blocks(3)]
    for block in late:
        block["event_time"][block["event_time"] < VALIDATION] = VALIDATION
        block["query_split"][block["query_split"] == 1] = 2
    tokens, weights = [], []
    for name, made in (("a", early), ("b", early + late)):
        spec = specification(tmp_path / name, [made], pretrain_epochs=1, micro_batch_size=len(early))
        trainer = Trainer(spec, LocalGroup(), lambda record: None)
        only_pre_train(trainer)
        tokens.append(trainer.standing.tokens)
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
    assert tokens[0] == tokens[1] > 0
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5, msg=key)


def only_pre_train(trainer: Trainer) -> None:
    class StoppedError(Exception):
        pass

    epochs = trainer._epochs

    def stopping(work: Any, stop_after: int | None = None) -> Any:
        if work.phase == "fine-tuning":
            raise StoppedError
        return epochs(work, stop_after)

    trainer._epochs = stopping  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        trainer.fit()


def test_a_training_period_without_lessons_is_refused(tmp_path: Path) -> None:
    made = blocks(3)
    for block in made:
        block["event_time"][block["event_time"] < VALIDATION] = VALIDATION
    with pytest.raises(ModelError, match="pre-training: there is nothing to learn from"):
        Trainer(specification(tmp_path, [made]), LocalGroup(), lambda record: None).fit()


def test_aggregates_are_standardised_by_the_training_period_alone(trained: tuple[Path, Records]) -> None:
    rows = [b["aggregates"].reshape(8, -1)[b["query_split"] == 1] for b in blocks(PEOPLE)]
    expected = np.concatenate(rows).astype(np.float64)
    card = json.loads((trained[0] / CARD).read_text())["normaliser"]
    np.testing.assert_allclose(card["aggregate_mean"], expected.mean(0), rtol=1e-5, atol=1e-6)
    std = expected.std(0)
    np.testing.assert_allclose(card["aggregate_std"], np.where(std > 1e-4, std, 1.0), rtol=1e-4)


def test_a_specification_comes_back_from_its_file(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks(2)])
    spec.save(tmp_path / "spec.json")
    assert TrainingSpec.load(tmp_path / "spec.json") == spec


def test_a_fingerprint_tells_trainings_apart_and_not_what_the_tables_have_come_to_since(
    tmp_path: Path,
) -> None:
    """An opt-in or a late link moves the means of the events, not those of the pinned snapshot."""
    spec = specification(tmp_path, [blocks(2)])
    later = dataclasses.replace(
        spec,
        numeric_mean=(0.1,),
        numeric_std=(1.1,),
        numeric_edges=((0.0, 9.0),),
        facts={"run_id": "another"},
        secrets=("ANOTHER_PASSWORD",),
    )
    assert later.fingerprint() == spec.fingerprint()
    for other in (
        dataclasses.replace(spec, all_urls=spec.all_urls[:0]),
        dataclasses.replace(spec, settings={**spec.settings, "seed": 1}),
    ):
        assert other.fingerprint() != spec.fingerprint()


def weights_after(folder: Path, made: list[Block], **settings: Any) -> bytes:
    """The artifact's weights after a short training."""
    spec = specification(folder, [made], **{"pretrain_epochs": 1, "finetune_epochs": 1, **settings})
    Trainer(spec, LocalGroup(), lambda record: None).fit()
    return (folder / WEIGHTS).read_bytes()


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(tmp_path: Path) -> None:
    made = blocks(8)
    first, again, other = (
        weights_after(tmp_path / name, made, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_the_test_period_teaches_nothing(tmp_path: Path) -> None:
    """Other events and other labels from the test period on leave the weights as they were, but for rounding; from
    the validation period on they do not.
    """
    ends = []
    for since, split in ((None, None), (TEST, 4), (VALIDATION, 2)):
        made = blocks(9)
        for block in made if since is not None else ():
            late, asked = block["event_time"] >= since, block["query_split"] == split
            assert late.any()
            assert asked.any()
            block["event_item"][late] = 3
            block["event_amount"][late] = 1e6
            block["label_reply"][asked] = 1 - block["label_reply"][asked]
        ends.append(load(weights_after(tmp_path / f"{split}", made)))
    first, second, taught = ends
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = [name for name, values in first.items() if (taught[name] - values).norm() > 1e-2 * values.norm()]
    assert len(moved) > len(first) / 2


def test_the_validation_period_teaches_the_refit_only(tmp_path: Path) -> None:
    """Pre-training and fine-tuning learn neither its events nor its labels; the refit does."""
    made, changed = blocks(8), blocks(8)
    for block in changed:
        asked = block["query_split"] == 2
        block["label_reply"][asked] = 1 - block["label_reply"][asked]
        late = block["event_time"] >= VALIDATION
        block["event_action"][late] = 1
    ends = []
    for name, content in (("a", made), ("b", changed)):
        told: Records = []
        spec = specification(tmp_path / name, [content], pretrain_epochs=1, finetune_epochs=1)
        Trainer(spec, LocalGroup(), told.append).fit()
        ends.append({r["phase"]: r["loss"] for r in told if r["event"] == "epoch end"})
    first, second = ends
    assert first["pre-training"] == pytest.approx(second["pre-training"], rel=1e-5)
    assert first["fine-tuning"] == pytest.approx(second["fine-tuning"], rel=1e-5)
    assert first["refit"] != pytest.approx(second["refit"], rel=1e-2)


def with_infinite_amounts(made: list[Block], start: int, end: int) -> list[Block]:
    """Blocks whose amounts in [start, end) are infinite."""
    for block in made:
        here = (block["window"] > 0) & (block["event_time"] >= start) & (block["event_time"] < end)
        block["event_amount"][here] = np.inf
    return made


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path) -> None:
    """The one block of all that holds infinite numbers is in the batch that the error names."""
    made = blocks(20)
    with_infinite_amounts(made[13:14], 0, VALIDATION)
    spec = specification(tmp_path, [made[:10], made[10:]])
    told: Records = []
    trainer = Trainer(spec, LocalGroup(), told.append)
    with pytest.raises(ModelError) as caught:
        trainer.fit()
    found = re.fullmatch(
        r"the loss is not finite in pre-training, epoch 1, step (\d+), rank 0 \(loss nan, gradient norm nan\), (.*) "
        r"\(counted from 0\)\. Lower training.learning_rate, or look for extreme numbers in the events of these blocks",
        str(caught.value),
    )
    assert found is not None, caught.value
    assert int(found[1]) == trainer.standing.step + 1 > 1
    named = found[2].split(", ")
    assert len(named) == spec.settings["micro_batch_size"]
    assert f"{spec.all_urls[1]} row group 0 row 3" in named
    assert not (tmp_path / WEIGHTS).exists()


class BesideAnother(LocalGroup):
    """Rank 0 of two; the other one's gradients are the same, its numbers not finite, or too large in 16 bits."""

    size = 2

    def __init__(self, other: str) -> None:
        self.other = other

    def begin_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        gradients = values.dtype == torch.float16 or (values.dtype == torch.float32 and values.numel() > 1000)
        return lambda: values * (np.inf if gradients else 2)

    def gather(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        assert not len(values)  # nothing of its own is to blame
        others = [[1, np.inf, np.nan, 1, 0, 2], [1, np.inf, np.nan, 1, 2, 0]]
        return np.array(others) if self.other == "not finite" else values


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            "not finite",
            "the loss is not finite in fine-tuning, epoch 1, step 1, rank 1 (loss inf, gradient norm nan), {url} row "
            "group 0 row 2, {url} row group 2 row 0 (counted from 0). Lower training.learning_rate, or look for "
            "extreme numbers in the events of these blocks",
        ),
        (
            "too large",
            "the gradients are finite on each rank in fine-tuning, epoch 1, step 1, but their sum is not. Lower "
            "training.learning_rate",
        ),
    ],
)
def test_a_rank_does_not_blame_its_own_blocks_for_what_another_sends(
    tmp_path: Path, other: str, says: str
) -> None:
    made = blocks(8)
    spec = specification(tmp_path, [made[:4], made[4:]])
    trainer = Trainer(spec, BesideAnother(other), lambda record: None)
    with pytest.raises(ModelError) as caught:
        take_steps(trainer, [stack(SHAPE, made[:2])])
    assert str(caught.value) == says.format(url=spec.all_urls[1])


def test_an_infinite_number_in_the_validation_period_is_not_passed_over(tmp_path: Path) -> None:
    """A model that validation cannot judge must not be saved as if an epoch had been chosen."""
    made = with_infinite_amounts(blocks(8), VALIDATION, TEST)
    spec = specification(tmp_path, [made], pretrain_epochs=0, next_event_weight=0)
    with pytest.raises(ModelError, match="not finite"):
        Trainer(spec, LocalGroup(), lambda record: None).fit()
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize(("how", "examples"), [("one class", 16), ("no query", 0), ("no label", 0)])
def test_a_validation_period_that_nothing_can_be_judged_by_is_refused(
    tmp_path: Path, how: str, examples: int
) -> None:
    made = blocks(8)
    for block in made:
        asked = block["query_split"] == 2
        if how == "no query":
            block["query_split"][asked] = 3
        else:
            block["label_reply"][asked] = 0 if how == "one class" else np.nan
    told: Records = []
    with pytest.raises(ModelError) as caught:
        Trainer(specification(tmp_path, [made]), LocalGroup(), told.append).fit()
    assert not told, "before anything is trained"
    assert str(caught.value) == (
        f"the validation period has {examples} examples of 'reply' and not both classes: nothing can be chosen or "
        "calibrated. Move split.validation_start"
    )
    assert not (tmp_path / WEIGHTS).exists()


def test_a_validation_period_without_next_moments_has_no_loss_of_them(tmp_path: Path) -> None:
    """A loss of 0 would look like a result. The answers, which choose the epoch, are judged as ever."""
    made = blocks(8)
    for block in made:
        block["is_new"][block["event_time"] >= VALIDATION] = 0
    told: Records = []
    Trainer(specification(tmp_path, [made]), LocalGroup(), told.append).fit()
    epochs = [record for record in told if record["event"] == "epoch"]
    pre_training = [record for record in epochs if record["phase"] == "pre-training"]
    assert [record["epoch"] for record in pre_training] == [0, 1, 2]
    assert not any("validation loss" in record for record in pre_training)
    assert all(loss > 0 for loss in losses(told, "fine-tuning"))
    assert told[-1]["event"] == "done"
