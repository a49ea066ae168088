"""File of value embeddings in the training folder: pre-computed vectors of categorical values."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
from torch import Tensor

from lam_spark.errors import ModelError

VALUE_EMBEDDINGS_FILE = "value_embeddings.safetensors"


def pack_value_embeddings(tables: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """Content of the file (safetensors) for field -> (values, dim) table; empty without tables."""
    return safetensors.numpy.save(tables) if tables else b""


def value_embeddings_digest(content: bytes) -> str:
    """sha256 (hex) of the file's content; empty for empty content."""
    return hashlib.sha256(content).hexdigest() if content else ""


def save_value_embeddings(folder: Path, content: bytes) -> None:
    """Write the file into the training folder, atomically; empty content writes no file."""
    if content:
        draft = folder / f"{VALUE_EMBEDDINGS_FILE}.draft"
        draft.write_bytes(content)
        draft.rename(folder / VALUE_EMBEDDINGS_FILE)


def load_value_embeddings(folder: Path, digest: str) -> dict[str, Tensor]:
    """Field -> (values, dim) table of the file in the folder; empty for an empty digest.

    Raises:
        ModelError: the file is missing or does not have the digest.
    """
    if not digest:
        return {}
    path = folder / VALUE_EMBEDDINGS_FILE
    content = path.read_bytes() if path.exists() else b""
    if value_embeddings_digest(content) != digest:
        raise ModelError(f"{path} is missing or damaged: remove {folder} and run the stage 'train' again")
    return safetensors.torch.load(content)
