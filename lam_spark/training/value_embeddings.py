"""The file of fixed vectors beside a training's specification."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from lam_spark.errors import ModelError

VECTORS_FILE = "vectors.safetensors"


def packed_vectors(tables: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """What `save_vectors` writes: safetensors; nothing where no field has any."""
    return safetensors.numpy.save(tables) if tables else b""


def digest_of(vectors: bytes) -> str:
    """sha256 (hex) of what `packed_vectors` gave; empty where no field has any."""
    return hashlib.sha256(vectors).hexdigest() if vectors else ""


def save_vectors(folder: Path, vectors: bytes) -> None:
    """Put them where the ranks find them."""
    if vectors:
        draft = folder / f"{VECTORS_FILE}.draft"
        draft.write_bytes(vectors)
        draft.rename(folder / VECTORS_FILE)


def load_vectors(folder: Path, digest: str) -> dict[str, Tensor]:
    """Inverse of `save_vectors`.

    Raises:
        ModelError: the file is not the one that the training began with.
    """
    if not digest:
        return {}
    path = folder / VECTORS_FILE
    vectors = path.read_bytes() if path.exists() else b""
    if digest_of(vectors) != digest:
        raise ModelError(f"{path} is missing or damaged: remove {folder} and run the stage 'train' again")
    return safetensors.torch.load(vectors)
