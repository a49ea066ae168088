"""Where a training stands, on disk: a file a checkpoint, written whole or not at all, checked when it is read.

`checkpoint-NUMBER-SHA256.safetensors`: the tensors and, in the file's header, the rest as JSON. Data and not code.
The newest two stay, so that a damaged one costs the minutes since the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

Weights = dict[str, Tensor]

_KEPT = 2
_DRAFT = "checkpoint.draft"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on.

    Attributes:
        state: plain JSON values.
        tensors: name -> tensor, on the CPU when read.
    """

    state: dict[str, Any]
    tensors: Weights


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the next checkpoint, then remove those before the last two.

    Raises:
        OSError: it could not be written (a full disk, say); the earlier ones are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _files(folder)
    draft = folder / _DRAFT
    try:
        try:
            save_file(checkpoint.tensors, draft, metadata={"state": json.dumps(checkpoint.state)})
        except SafetensorError as error:  # its own word for an OSError
            raise OSError(str(error)) from error
        with draft.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        number = _number(earlier[-1]) + 1 if earlier else 1
        path = draft.rename(folder / f"checkpoint-{number:08d}-{digest}.safetensors")
        _sync_folder(folder)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    for old in [*earlier, path][:-_KEPT]:
        old.unlink()
    return path


def last_checkpoint(folder: Path, fingerprint: str) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a training, if there is one, and the names of damaged ones that are newer.

    Args:
        folder: where `write_checkpoint` put them.
        fingerprint: what `state["fingerprint"]` must be: another training's checkpoints are passed over.
    """
    damaged: list[str] = []
    for path in reversed(_files(folder)):
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == path.stem.rsplit("-", 1)[1]
            if whole:
                with safe_open(path, "pt") as opened:
                    if json.loads(opened.metadata()["state"])["fingerprint"] == fingerprint:
                        return path, damaged
                continue
        except OSError:
            pass  # cannot be read: as good as damaged
        damaged.append(path.name)
    return None, damaged


def read_checkpoint(path: Path) -> Checkpoint:
    """What `last_checkpoint` has found whole."""
    with safe_open(path, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
        # Copies: what is given out are views of the file, which goes when two newer ones are there, and on a network
        # file system takes its pages with it.
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        return Checkpoint(state, tensors)


def optimiser_tensors(optimiser: Optimizer) -> Weights:
    """What an optimiser has gathered, by `NUMBER OF THE PARAMETER.NAME`; its settings are not in there."""
    gathered = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": value for number, values in gathered.items() for name, value in values.items()
    }


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
    """A rename lasts through a power cut only when its folder is on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
