"""Checkpoints of a training: one file each, written atomically and verified when read.

`checkpoint-NUMBER-SHA256.safetensors` holds the tensors and, in the header's metadata, the training state as JSON. No
pickle. The newest two are kept, so that a damaged one costs only the time since the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from lam_spark.training.process_group import ProcessGroup
from lam_spark.training.progress import Progress
from lam_spark.training.state import TrainingState

Weights = dict[str, Tensor]

# Subfolder of the training folder.
CHECKPOINTS = "checkpoints"
_KEPT_FILES = 2
_DRAFT = "checkpoint.draft"
_GROUPS = ("model", "pretrained", "average", "optimiser")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training needs to resume.

    Attributes:
        fingerprint: `TrainingSpec.fingerprint` of the training.
        state: the training state, summed over all processes.
        model: state dict of the model.
        pretrained: state dict after pre-training; empty before and after fine-tuning.
        average: average weights (`WeightAverage.weights`).
        optimiser: state of the optimiser (`optimiser_tensors`).
    """

    fingerprint: str
    state: TrainingState
    model: Weights
    pretrained: Weights
    average: Weights
    optimiser: Weights


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the next checkpoint, then delete all but the newest two.

    Raises:
        OSError: the file could not be written, for example on a full disk; older checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    older = _files(folder)
    draft = folder / _DRAFT
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group in _GROUPS
        for name, tensor in getattr(checkpoint, group).items()
    }
    header = {"fingerprint": checkpoint.fingerprint, "training_state": checkpoint.state.to_json()}
    try:
        try:
            save_file(tensors, draft, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # safetensors wraps operating-system errors
            raise OSError(str(error)) from error
        with draft.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        number = _number(older[-1]) + 1 if older else 1
        path = draft.rename(folder / f"checkpoint-{number:08d}-{digest}.safetensors")
        _sync_folder(folder)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    for file_path in [*older, path][:-_KEPT_FILES]:
        file_path.unlink()
    return path


def last_checkpoint(folder: Path, fingerprint: str) -> tuple[Path | None, list[str]]:
    """Find the newest undamaged checkpoint of a training.

    Args:
        folder: folder of `write_checkpoint`.
        fingerprint: fingerprint of the training; checkpoints of other trainings are skipped.

    Returns:
        The path or None, and the names of newer, damaged checkpoints.
    """
    damaged: list[str] = []
    for path in reversed(_files(folder)):
        try:
            with path.open("rb") as file:
                intact = hashlib.file_digest(file, "sha256").hexdigest() == path.stem.rsplit("-", 1)[1]
            if intact:
                with safe_open(path, "pt") as opened:
                    if json.loads(opened.metadata()["header"])["fingerprint"] == fingerprint:
                        return path, damaged
                continue
        except OSError:
            pass  # an unreadable file counts as damaged
        damaged.append(path.name)
    return None, damaged


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that `last_checkpoint` has verified; tensors are on the CPU."""
    groups: dict[str, Weights] = {group: {} for group in _GROUPS}
    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["header"])
        for key in opened.keys():  # noqa: SIM118
            group, _, name = key.partition(".")
            # A copy: the tensor is a view of the file, which is deleted after two newer checkpoints.
            groups[group][name] = opened.get_tensor(key).clone()
    state = TrainingState.from_json(header["training_state"])
    return Checkpoint(header["fingerprint"], state, **groups)


def resume_checkpoint(
    folder: Path, fingerprint: str, group: ProcessGroup, progress: Progress
) -> Checkpoint | None:
    """Read the newest undamaged checkpoint on every process; collective.

    The first process chooses the file, all read it from the shared folder. Processes other than the first get zero
    `tokens`, `flops` and `loss_sum`: the first process holds the sums.

    Args:
        folder: folder of the checkpoints.
        fingerprint: fingerprint of the training.
        group: the process group.
        progress: receives `checkpoint damaged` and `resumed`.

    Returns:
        The checkpoint, or None if there is none.
    """
    path: Path | None = None
    if group.rank == 0:
        path, damaged = last_checkpoint(folder, fingerprint)
        for name in damaged:
            progress({"event": "checkpoint damaged", "file": name})
    path = group.share(path)
    if path is None:
        return None
    checkpoint = read_checkpoint(path)
    state = checkpoint.state
    if group.rank == 0:
        place = {name: getattr(state, name) for name in ("phase", "epoch", "step", "seconds")}
        progress({"event": "resumed", **place})
    else:
        state.tokens, state.flops, state.loss_sum = 0, 0.0, 0.0
    return checkpoint


def optimiser_tensors(optimiser: Optimizer) -> Weights:
    """State of an optimiser by `PARAMETER_NUMBER.NAME`, without its hyper-parameters."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimiser(optimiser: Optimizer, tensors: Weights) -> None:
    """Inverse of `optimiser_tensors`."""
    state = optimiser.state_dict()
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state["state"].setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(state)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*-*.safetensors"))


def _number(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _sync_folder(folder: Path) -> None:
    """Flush the folder: a rename survives a power failure only when its folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
