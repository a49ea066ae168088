"""Checkpoints on disk, and trainings that are cut off and go on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lam_spark.model.artifact import WEIGHTS
from lam_spark.training.checkpoint import Checkpoint, last_checkpoint, read_checkpoint, write_checkpoint
from lam_spark.training.launch import worker
from lam_spark.training.process_group import LocalGroup
from lam_spark.training.spec import TrainingSpec
from lam_spark.training.trainer import CHECKPOINTS, Trainer
from tests.support.disks import full_disk
from tests.support.learnable import SHAPE, blocks, specification

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # petastorm's, about pyarrow

Records = list[dict[str, Any]]


def checkpoint(number: int, fingerprint: str = "this") -> Checkpoint:
    return Checkpoint(
        {"fingerprint": fingerprint, "number": number}, {"w": torch.full((1000,), float(number))}
    )


def written(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def found(folder: Path, fingerprint: str = "this") -> tuple[int | None, list[str]]:
    """Number of the checkpoint that is found, and the damaged ones."""
    path, damaged = last_checkpoint(folder, fingerprint)
    if path is None:
        return None, damaged
    last = read_checkpoint(path)
    assert torch.equal(last.tensors["w"], torch.full((1000,), float(last.state["number"])))
    return last.state["number"], damaged


def test_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    for number in range(1, 5):
        write_checkpoint(tmp_path, checkpoint(number))
    assert [path.name.split("-")[1] for path in written(tmp_path)] == ["00000003", "00000004"]
    assert found(tmp_path) == (4, [])


@pytest.mark.parametrize("how", ["bit", "cut", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, how: str) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    path = write_checkpoint(tmp_path, checkpoint(2))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"bit": bytes(content), "cut": content[:-100], "empty": b""}[how])
    assert found(tmp_path) == (1, [path.name])


def test_nothing_whole_is_nothing(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == (None, [])
    path = write_checkpoint(tmp_path, checkpoint(1))
    path.write_bytes(b"")
    assert found(tmp_path) == (None, [path.name])


def test_the_checkpoint_of_another_training_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1, "this"))
    write_checkpoint(tmp_path, checkpoint(2, "other"))
    assert found(tmp_path) == (1, [])


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    before = written(tmp_path)
    with full_disk(2000), pytest.raises(OSError, match="File too large"):
        write_checkpoint(tmp_path, checkpoint(2))
    assert written(tmp_path) == before
    assert found(tmp_path) == (1, [])


def test_training_goes_on_when_a_checkpoint_cannot_be_written(tmp_path: Path) -> None:
    spec = specification(tmp_path, [blocks(4)], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0)
    weights = sum(p.numel() for p in Trainer(spec, LocalGroup(), lambda record: None).model.parameters())
    with full_disk(4 * weights * 2):  # the model fits, the model with its optimiser does not
        worker.train(spec, LocalGroup())
    told = [json.loads(line) for line in (tmp_path / worker.PROGRESS_FILE).read_text().splitlines()]
    failed = [record for record in told if record["event"] == "checkpoint failed"]
    assert failed
    assert "too large" in failed[0]["error"].lower()
    assert told[-1]["event"] == "done"
    assert not (tmp_path / CHECKPOINTS).exists()


class StoppedError(Exception):
    """The test ends a training here."""


def trained(spec: TrainingSpec, stop_at: int | None = None) -> Records:
    """Train in this process, at most up to a step of all; what was told."""
    told: Records = []
    trainer = Trainer(spec, LocalGroup(), told.append)
    steps, step = 0, trainer._step

    def counted(*arguments: Any) -> tuple[float, bool]:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise StoppedError
        return step(*arguments)

    trainer._step = counted  # type: ignore[method-assign]
    if stop_at is None:
        trainer.fit()
        told.append({"event": "steps", "steps": steps})
    else:
        with pytest.raises(StoppedError):
            trainer.fit()
    return told


def judged(told: Records) -> dict[tuple[str, int], float]:
    """(phase, epoch) -> validation loss."""
    return {(r["phase"], r["epoch"]): r["validation loss"] for r in told if "validation loss" in r}


def test_a_training_that_is_cut_off_anywhere_ends_with_the_same_weights(tmp_path: Path) -> None:
    made = blocks(10)
    settings = {"pretrain_epochs": 2, "finetune_epochs": 2, "patience": 2, "checkpoint_minutes": 0}

    def spec(name: str) -> TrainingSpec:
        return specification(tmp_path / name, [made[::2], made[1::2]], **settings)

    whole = trained(spec("whole"))
    steps, expected = whole[-1]["steps"], (tmp_path / "whole" / WEIGHTS).read_bytes()
    facts = whole[-2]["facts"]
    assert steps > 20
    phases = set()
    for cut in range(2, steps + 1, 7):
        name = f"cut-{cut}"
        first = trained(spec(name), cut)
        assert not (tmp_path / name / WEIGHTS).exists()
        second = trained(spec(name))
        assert second[0]["event"] == "resumed"
        phases.add(second[0]["phase"])
        assert second[-1]["steps"] == steps - (cut - 1)  # not one is done twice
        assert (tmp_path / name / WEIGHTS).read_bytes() == expected, cut
        assert judged(first) | judged(second) == judged(whole)
        again = second[-2]["facts"]
        assert {k: v for k, v in again.items() if "seconds" not in k} == {
            k: v for k, v in facts.items() if "seconds" not in k
        }
        assert not (tmp_path / name / CHECKPOINTS).exists()
    assert phases == {"pre-training", "fine-tuning", "refit"}


def test_a_training_with_other_settings_begins_anew(tmp_path: Path) -> None:
    made = blocks(4)
    trained(specification(tmp_path, [made], pretrain_epochs=2, checkpoint_minutes=0), 4)
    assert list((tmp_path / CHECKPOINTS).iterdir())
    told = trained(
        specification(tmp_path, [made], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0)
    )
    assert told[0]["event"] != "resumed"
    assert ("pre-training", 0) in judged(told)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": dataclasses.replace(SHAPE, categorical=SHAPE.categorical[::-1], sizes=SHAPE.sizes[::-1])},
        {"layout": dataclasses.replace(SHAPE, half_life_days=(1.0, 2.0, 3.0, 4.0))},
        {"vocabulary_digest": "of other values"},
    ],
    ids=["fields", "half-lives", "vocabulary"],
)
def test_a_training_whose_numbers_mean_something_else_begins_anew(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """With other half-lives or another vocabulary the checkpoint's tensors would fit: only the fingerprint tells."""
    spec = specification(tmp_path, [blocks(4)], checkpoint_minutes=0)
    trained(spec, 4)
    assert trained(spec, 1)[0]["event"] == "resumed"
    other = dataclasses.replace(spec, **change)
    assert "resumed" not in [record["event"] for record in trained(other, 1)]


def test_a_training_with_a_damaged_checkpoint_says_so_and_goes_on_from_the_one_before(tmp_path: Path) -> None:
    made = blocks(6)

    def spec(name: str) -> TrainingSpec:
        return specification(
            tmp_path / name, [made], pretrain_epochs=1, finetune_epochs=1, checkpoint_minutes=0
        )

    trained(spec("whole"))
    trained(spec("cut"), 3)
    *_, last = sorted((tmp_path / "cut" / CHECKPOINTS).iterdir())
    last.write_bytes(last.read_bytes()[:-1])
    told = trained(spec("cut"))
    assert [record["event"] for record in told[:2]] == ["checkpoint damaged", "resumed"]
    assert told[0]["file"] == last.name
    assert told[1]["step"] == 1
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
