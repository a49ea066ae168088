"""Checkpoints on disk, and trainings that are interrupted and resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lam_spark.model.artifact import WEIGHTS
from lam_spark.training.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    last_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.state import TrainingState
from lam_spark.training.trainer import Trainer
from tests.support.disks import full_disk
from tests.support.learnable import SHAPE, blocks, specification

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm uses an old API of pyarrow

Records = list[dict[str, Any]]


def checkpoint(number: int, fingerprint: str = "this") -> Checkpoint:
    weights = {"w": torch.full((1000,), float(number))}
    return Checkpoint(fingerprint, TrainingState(step=number), weights, {}, {}, {})


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def newest(folder: Path, fingerprint: str = "this") -> tuple[int | None, list[str]]:
    """Step of the newest undamaged checkpoint, and the damaged ones."""
    path, damaged = last_checkpoint(folder, fingerprint)
    if path is None:
        return None, damaged
    last = read_checkpoint(path)
    assert last.fingerprint == fingerprint
    assert torch.equal(last.model["w"], torch.full((1000,), float(last.state.step)))
    return last.state.step, damaged


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = TrainingState(
        "refit", 2, 3, 4, 5.0, 6.0, 7.0, 8, -0.5, {"reply": (1.0, 0.25)}, {"loss": 0.5, "AUC": 0.75}
    )
    groups = [{"a.weight": torch.arange(3.0) + number} for number in range(4)]
    saved = read_checkpoint(write_checkpoint(tmp_path, Checkpoint("this", state, *groups)))
    assert (saved.fingerprint, saved.state) == ("this", state)
    for tensors, expected in zip(
        (saved.model, saved.pretrained, saved.average, saved.optimiser), groups, strict=True
    ):
        assert tensors.keys() == expected.keys()
        assert torch.equal(tensors["a.weight"], expected["a.weight"])


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for number in range(1, 5):
        write_checkpoint(tmp_path, checkpoint(number))
    assert [path.name.split("-")[1] for path in files(tmp_path)] == ["00000003", "00000004"]
    assert newest(tmp_path) == (4, [])


@pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    path = write_checkpoint(tmp_path, checkpoint(2))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"bit": bytes(content), "cut": content[:-100], "empty": b""}[damage])
    assert newest(tmp_path) == (1, [path.name])


def test_without_an_undamaged_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") == (None, [])
    path = write_checkpoint(tmp_path, checkpoint(1))
    path.write_bytes(b"")
    assert newest(tmp_path) == (None, [path.name])


def test_the_checkpoint_of_another_training_is_skipped(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1, "this"))
    write_checkpoint(tmp_path, checkpoint(2, "other"))
    assert newest(tmp_path) == (1, [])


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    before = files(tmp_path)
    with full_disk(2000), pytest.raises(OSError, match="File too large"):
        write_checkpoint(tmp_path, checkpoint(2))
    assert files(tmp_path) == before
    assert newest(tmp_path) == (1, [])


def test_training_goes_on_when_a_checkpoint_cannot_be_written(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks(4)], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0)
    weights = sum(p.numel() for p in Trainer(spec, LocalGroup(), lambda record: None).model.parameters())
    with full_disk(4 * weights * 2):  # the model fits, the model with its optimiser does not
        worker.train(spec, LocalGroup())
    records = [json.loads(line) for line in (tmp_path / worker.PROGRESS_FILE).read_text().splitlines()]
    failed = [record for record in records if record["event"] == "checkpoint failed"]
    assert failed
    assert "too large" in failed[0]["error"].lower()
    assert records[-1]["event"] == "done"
    assert not (tmp_path / CHECKPOINTS).exists()


class StoppedError(Exception):
    """Ends a training in a test."""


def train(spec: TrainingSpec, stop_at: int | None = None) -> Records:
    """Train in this process, at most up to a step (from 1), and return the progress records."""
    records: Records = []
    trainer = Trainer(spec, LocalGroup(), records.append)
    steps, step = 0, trainer._step

    def counting_step(*arguments: Any) -> tuple[float, bool]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise StoppedError
        return step(*arguments)

    trainer._step = counting_step  # type: ignore[method-assign]
    if stop_at is None:
        trainer.fit()
        records.append({"event": "steps", "steps": steps})
    else:
        with pytest.raises(StoppedError):
            trainer.fit()
    return records


def validation_losses(records: Records) -> dict[tuple[str, int], float]:
    """(phase, epoch) -> validation loss."""
    return {(r["phase"], r["epoch"]): r["validation loss"] for r in records if "validation loss" in r}


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if "seconds" not in name}


def test_a_training_that_is_interrupted_anywhere_ends_with_the_same_weights(tmp_path: Path) -> None:
    content = blocks(10)
    settings = {"pretrain_epochs": 2, "finetune_epochs": 2, "patience": 2, "checkpoint_minutes": 0}

    def spec(name: str) -> TrainingSpec:
        return specification(tmp_path / name, [content[::2], content[1::2]], **settings)

    whole = train(spec("whole"))
    steps, expected = whole[-1]["steps"], (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert steps > 20
    phases = set()
    for stop_at in range(2, steps + 1, 7):
        name = f"stop-{stop_at}"
        first = train(spec(name), stop_at)
        assert not (tmp_path / name / WEIGHTS).exists()
        second = train(spec(name))
        assert second[0]["event"] == "resumed"
        phases.add(second[0]["phase"])
        assert second[-1]["steps"] == steps - (stop_at - 1)  # no step is repeated
        assert (tmp_path / name / WEIGHTS).read_bytes() == expected, stop_at
        assert validation_losses(first) | validation_losses(second) == validation_losses(whole)
        assert without_seconds(second[-2]["summary"]) == without_seconds(whole[-2]["summary"])
        assert not (tmp_path / name / CHECKPOINTS).exists()
    assert phases == {"pre-training", "fine-tuning", "refit"}


def test_a_training_with_other_settings_starts_from_the_beginning(tmp_path: Path) -> None:
    content = blocks(4)
    train(specification(tmp_path, [content], pretrain_epochs=2, checkpoint_minutes=0), 4)
    assert list((tmp_path / CHECKPOINTS).iterdir())
    records = train(
        specification(tmp_path, [content], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0)
    )
    assert records[0]["event"] != "resumed"
    assert ("pre-training", 0) in validation_losses(records)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": dataclasses.replace(SHAPE, categorical=SHAPE.categorical[::-1], sizes=SHAPE.sizes[::-1])},
        {"layout": dataclasses.replace(SHAPE, half_life_days=(1.0, 2.0, 3.0, 4.0))},
        {"vocabulary_digest": "of other values"},
    ],
    ids=["fields", "half-lives", "vocabulary"],
)
def test_a_training_whose_inputs_have_another_meaning_starts_from_the_beginning(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """With other half-lives or another vocabulary the tensors would fit: only the fingerprint differs."""
    spec = specification(tmp_path, [blocks(4)], checkpoint_minutes=0)
    train(spec, 4)
    assert train(spec, 1)[0]["event"] == "resumed"
    other = dataclasses.replace(spec, **change)
    assert "resumed" not in [record["event"] for record in train(other, 1)]


def test_a_training_with_a_damaged_checkpoint_reports_it_and_resumes_from_the_one_before(
    tmp_path: Path,
) -> None:
    content = blocks(6)

    def spec(name: str) -> TrainingSpec:
        return specification(
            tmp_path / name, [content], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0
        )

    train(spec("whole"))
    train(spec("damaged"), 3)
    *_, last = sorted((tmp_path / "damaged" / CHECKPOINTS).iterdir())
    last.write_bytes(last.read_bytes()[:-1])
    records = train(spec("damaged"))
    assert [record["event"] for record in records[:2]] == ["checkpoint damaged", "resumed"]
    assert records[0]["file"] == last.name
    assert records[1]["step"] == 1
    assert (tmp_path / "damaged" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
