"""Training of one process, from block files to an artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from lam_spark.errors import ModelError
from lam_spark.model.artifact import CARD, WEIGHTS, open_artifact, read_artifact
from lam_spark.training.cost import block_flops, forward_flops
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training.trainer import Trainer
from lam_spark.training_data.layout import SPLIT_IDS
from lam_spark.training_data.packing import Block
from tests.support.learnable import SHAPE, TEST, VALIDATION, blocks, specification
from tests.support.tiny import SIZE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

Records = list[dict[str, Any]]
# With half as many customers an epoch has too few steps for each to improve on the one before.
PEOPLE = 48


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Records]:
    """Folder of a whole training through the worker's entry point, and its progress records."""
    folder = tmp_path_factory.mktemp("trained")
    content = blocks(PEOPLE)
    specification(folder, [content[::2], content[1::2]]).save(folder / "spec.json")
    worker.main([str(folder / "spec.json")])
    lines = (folder / worker.PROGRESS_FILE).read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def losses(records: Records, phase: str) -> list[float]:
    """Validation loss after each epoch."""
    epochs = [r for r in records if r["event"] == "epoch" and r["phase"] == phase]
    return [record["validation loss"] for record in epochs]


def pre_train_only(trainer: Trainer) -> None:
    class StoppedError(Exception):
        pass

    epochs = trainer._epochs

    def stopping_epochs(phase: Any, stop_after: int | None = None) -> Any:
        if phase.name == "fine-tuning":
            raise StoppedError
        return epochs(phase, stop_after)

    trainer._epochs = stopping_epochs  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        trainer.fit()


def test_pre_training_learns_to_predict_next_events(trained: tuple[Path, Records]) -> None:
    before, *_, after = losses(trained[1], "pre-training")
    assert after < before - 0.3


def test_fine_tuning_learns_the_target(trained: tuple[Path, Records]) -> None:
    fine_tuning = losses(trained[1], "fine-tuning")
    assert min(fine_tuning) < fine_tuning[0]
    assert min(fine_tuning) < math.log(2) / 2  # half the loss of a constant prediction


def test_the_refit_repeats_the_best_epoch(trained: tuple[Path, Records]) -> None:
    records = trained[1]
    fine_tuning = losses(records, "fine-tuning")
    summary = records[-1]["summary"]
    assert summary["best_epoch"] == 1 + int(np.argmin(fine_tuning))
    assert summary["validation"]["loss"] == min(fine_tuning)
    refit = [r["epoch"] for r in records if r["event"] == "epoch" and r["phase"] == "refit"]
    assert refit == list(range(1, summary["best_epoch"] + 1))


def test_the_artifact_has_the_reported_digest_and_summary(trained: tuple[Path, Records]) -> None:
    folder, records = trained
    assert records[-1]["event"] == "done"
    artifact = open_artifact(*read_artifact(folder), records[-1]["digest"])
    assert artifact.facts == {"run_id": "a test", "training": records[-1]["summary"]}
    assert artifact.calibration["reply"].slope > 0
    assert artifact.model.layout == SHAPE


def test_every_slot_in_use_is_counted_once_an_epoch(trained: tuple[Path, Records]) -> None:
    summary = trained[1][-1]["summary"]
    slots = sum(int((block["window"] > 0).sum()) for block in blocks(PEOPLE))
    epochs = len(losses(trained[1], "fine-tuning"))
    assert summary["tokens"] == slots * (2 + epochs + summary["best_epoch"])
    without_targets, with_targets = (block_flops(SHAPE, SIZE, flag) for flag in (False, True))
    assert 0 < without_targets < with_targets
    training = len(blocks(PEOPLE)) * (2 * without_targets + (epochs + summary["best_epoch"]) * with_targets)
    without_targets, with_targets = (forward_flops(SHAPE, SIZE, flag) for flag in (False, True))
    late = sum(block["known_at"].max() >= VALIDATION for block in blocks(PEOPLE))
    queried = sum((block["query_split"] == SPLIT_IDS["validation"]).any() for block in blocks(PEOPLE))
    validation = 3 * late * without_targets + (1 + epochs) * queried * with_targets
    assert 0 < validation < training
    assert summary["flops"] == training + validation
    assert summary["core_seconds"] == pytest.approx(summary["seconds"], abs=0.1)


def test_validation_reads_a_fixed_sample_of_many_files(tmp_path: Path) -> None:
    """The sample depends on the files alone."""
    content = blocks(24)
    files = [content[number::4] for number in range(4)]

    def first_loss(validation_blocks: int, *files: list[Block]) -> list[float]:
        records: Records = []
        folder = tmp_path / f"{validation_blocks}_{len(files)}"
        spec = specification(folder, list(files), validation_blocks=validation_blocks)
        pre_train_only(Trainer(spec, LocalGroup(), records.append))
        return losses(records, "pre-training")[:1]

    count = sum(map(len, files))
    assert first_loss(count, *files) == first_loss(1_000_000, *files)
    # One block: the first file in the order of the hashes of their names.
    first = min(range(4), key=lambda number: hashlib.sha256(f"part-{number}.parquet".encode()).digest())
    assert first_loss(1, *files) == pytest.approx(first_loss(1_000_000, files[first]), rel=1e-5)
    assert first_loss(1, *files) != first_loss(count, *files)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"activation_checkpointing": True}], ids=str)
def test_options_that_save_time_or_memory_train_to_nearly_the_same_losses(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    content, last_losses = blocks(8), []
    for name, settings in (("plain", {}), ("option", options)):
        records: Records = []
        spec = specification(tmp_path / name, [content], pretrain_epochs=1, finetune_epochs=1, **settings)
        Trainer(spec, LocalGroup(), records.append).fit()
        artifact = open_artifact(*read_artifact(tmp_path / name), records[-1]["digest"])
        assert {weight.dtype for weight in artifact.model.parameters()} == {torch.float32}
        last_losses.append([losses(records, "pre-training")[-1], losses(records, "fine-tuning")[-1]])
    plain, option = last_losses
    assert option == pytest.approx(plain, rel=0.02)
    assert (option == plain) == ("activation_checkpointing" in options)


def test_blocks_without_targets_are_not_computed(tmp_path: Path) -> None:
    """Blocks with events of the validation period only do not change the weights of pre-training."""
    early = blocks(4)
    late = [{name: values.copy() for name, values in block.items()} for block in blocks(3)]
    for block in late:
        block["known_at"][block["known_at"] < VALIDATION] = VALIDATION
        block["query_split"][block["query_split"] == 1] = 2
    tokens, weights = [], []
    for name, content in (("a", early), ("b", early + late)):
        spec = specification(tmp_path / name, [content], pretrain_epochs=1, micro_batch_size=len(early))
        trainer = Trainer(spec, LocalGroup(), lambda record: None)
        pre_train_only(trainer)
        tokens.append(trainer.state.tokens)
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
    assert tokens[0] == tokens[1] > 0
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5, msg=key)


def test_a_training_period_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    content = blocks(3)
    for block in content:
        block["known_at"][block["known_at"] < VALIDATION] = VALIDATION
    with pytest.raises(ModelError) as raised:
        Trainer(specification(tmp_path, [content]), LocalGroup(), lambda record: None).fit()
    assert str(raised.value) == (
        "pre-training: expected next events or labelled queries of train before 2016-10-26 00:00 (UTC), found none: "
        "move the dates of split"
    )


def test_aggregates_are_standardised_by_the_training_period_alone(trained: tuple[Path, Records]) -> None:
    rows = [b["aggregates"].reshape(8, -1)[b["query_split"] == 1] for b in blocks(PEOPLE)]
    expected = np.concatenate(rows).astype(np.float64)
    card = json.loads((trained[0] / CARD).read_text())["normaliser"]
    np.testing.assert_allclose(card["aggregate_mean"], expected.mean(0), rtol=1e-5, atol=1e-6)
    std = expected.std(0)
    np.testing.assert_allclose(card["aggregate_std"], np.where(std > 1e-4, std, 1.0), rtol=1e-4)


def test_a_specification_is_read_from_its_file(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks(2)])
    spec.save(tmp_path / "spec.json")
    assert TrainingSpec.load(tmp_path / "spec.json") == spec


def test_the_fingerprint_depends_on_the_training_and_not_on_the_present_tables(tmp_path: Path) -> None:
    """A new consent or a late link changes the statistics of the events, but not the pinned snapshot."""
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
    not_decisive = {"checkpoint_minutes": 1.0, "experiment": "another", "activation_checkpointing": True}
    same = dataclasses.replace(spec, settings=spec.settings.model_copy(update=not_decisive))
    assert same.fingerprint() == spec.fingerprint()
    for other in (
        dataclasses.replace(spec, all_urls=spec.all_urls[:0]),
        dataclasses.replace(spec, settings=spec.settings.model_copy(update={"seed": 1})),
    ):
        assert other.fingerprint() != spec.fingerprint()


def weights_after(folder: Path, content: list[Block], **settings: Any) -> bytes:
    """Weights of the artifact after a short training."""
    spec = specification(folder, [content], **{"pretrain_epochs": 1, "finetune_epochs": 1, **settings})
    Trainer(spec, LocalGroup(), lambda record: None).fit()
    return (folder / WEIGHTS).read_bytes()


def test_the_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    content = blocks(8)
    first, again, other = (
        weights_after(tmp_path / name, content, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_the_test_period_does_not_change_the_weights(tmp_path: Path) -> None:
    """Other events and labels from the test period on change the weights by rounding only; from the validation
    period on they change them.
    """
    results = []
    for since, split in ((None, None), (TEST, 4), (VALIDATION, 2)):
        content = blocks(9)
        for block in content if since is not None else ():
            late, queries = block["known_at"] >= since, block["query_split"] == split
            assert late.any()
            assert queries.any()
            block["event_item"][late] = 3
            block["event_amount"][late] = 1e6
            block["label_reply"][queries] = 1 - block["label_reply"][queries]
        results.append(load(weights_after(tmp_path / f"{split}", content)))
    first, second, third = results
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = [name for name, values in first.items() if (third[name] - values).norm() > 1e-2 * values.norm()]
    assert len(moved) > len(first) / 2


def test_only_the_refit_trains_on_the_validation_period(tmp_path: Path) -> None:
    content, changed = blocks(8), blocks(8)
    for block in changed:
        queries = block["query_split"] == 2
        block["label_reply"][queries] = 1 - block["label_reply"][queries]
        late = block["known_at"] >= VALIDATION
        block["event_action"][late] = 1
    results = []
    for name, files in (("a", content), ("b", changed)):
        records: Records = []
        spec = specification(tmp_path / name, [files], pretrain_epochs=1, finetune_epochs=1)
        Trainer(spec, LocalGroup(), records.append).fit()
        results.append({r["phase"]: r["loss"] for r in records if r["event"] == "epoch end"})
    first, second = results
    assert first["pre-training"] == pytest.approx(second["pre-training"], rel=1e-5)
    assert first["fine-tuning"] == pytest.approx(second["fine-tuning"], rel=1e-5)
    assert first["refit"] != pytest.approx(second["refit"], rel=1e-2)


@pytest.mark.parametrize(("change", "examples"), [("one class", 16), ("no query", 0), ("no label", 0)])
def test_a_validation_period_without_both_classes_is_refused(
    tmp_path: Path, change: str, examples: int
) -> None:
    content = blocks(8)
    for block in content:
        queries = block["query_split"] == 2
        if change == "no query":
            block["query_split"][queries] = 3
        else:
            block["label_reply"][queries] = 0 if change == "one class" else np.nan
    records: Records = []
    with pytest.raises(ModelError) as raised:
        Trainer(specification(tmp_path, [content]), LocalGroup(), records.append).fit()
    assert not records, "refused before training starts"
    assert str(raised.value) == (
        f"expected examples of 'reply' with different labels in the validation period, found {examples} examples, but "
        "not of both classes: no epoch can be selected or calibrated. Move split.validation_start"
    )
    assert not (tmp_path / WEIGHTS).exists()


def test_without_next_events_in_the_validation_period_there_is_no_loss_of_them(tmp_path: Path) -> None:
    """A loss of 0 would look like a result. The targets, which select the epoch, are validated as usual."""
    content = blocks(8)
    for block in content:
        block["is_new"][block["known_at"] >= VALIDATION] = 0
    records: Records = []
    Trainer(specification(tmp_path, [content]), LocalGroup(), records.append).fit()
    epochs = [record for record in records if record["event"] == "epoch"]
    pre_training = [record for record in epochs if record["phase"] == "pre-training"]
    assert [record["epoch"] for record in pre_training] == [0, 1, 2]
    assert not any("validation loss" in record for record in pre_training)
    assert all(loss > 0 for loss in losses(records, "fine-tuning"))
    assert records[-1]["event"] == "done"


def test_without_a_validated_target_all_epochs_are_trained_and_nothing_is_calibrated(tmp_path: Path) -> None:
    """The validation period has too few queries: it selects no epoch, and its labels are not read."""
    content = blocks(8)
    for block in content:
        block["label_reply"][block["query_split"] == 2] = np.nan
    spec = dataclasses.replace(
        specification(tmp_path, [content], finetune_epochs=3, patience=1), validated_targets=()
    )
    records: Records = []
    Trainer(spec, LocalGroup(), records.append).fit()
    summary = records[-1]["summary"]
    assert (summary["best_epoch"], summary["validation"]) == (3, {})
    card = json.loads((tmp_path / CARD).read_text())
    assert card["calibration"] == {"reply": {"slope": 1.0, "intercept": 0.0}}


def test_a_target_that_is_not_measured_selects_no_epoch(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks(8)])
    assert spec.fingerprint() != dataclasses.replace(spec, validated_targets=()).fingerprint()
    records: Records = []
    for names in (("reply",), ()):
        runner = Trainer(
            dataclasses.replace(spec, validated_targets=names), LocalGroup(), records.append
        ).validation
        assert tuple(runner.target_metrics(TrainingState())) == names
