"""A model on disk: `model.safetensors` and `model.json`, data and not code, told apart by one sha256.

The digest covers both files, so weights cannot be paired with another configuration. No pickle is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lam_spark.errors import ModelError
from lam_spark.model.transformer import LargeActionModel, ModelSize, Normaliser
from lam_spark.training_data.layout import Layout

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = 4


@dataclass(frozen=True)
class Calibration:
    """Of one target: probability = sigmoid(slope * logit + intercept); of `value`, amount = slope * expectation."""

    slope: float
    intercept: float


@dataclass(frozen=True)
class Artifact:
    """A model ready to answer.

    Attributes:
        calibration: target -> how its logits become probabilities.
        facts: how it was trained (data versions, seed, metrics), for people; and what ties it to its data
            (`training.origin`).
        digest: sha256 over both files.
    """

    model: LargeActionModel
    calibration: dict[str, Calibration]
    facts: dict[str, Any]
    digest: str


def save_artifact(
    folder: Path, model: LargeActionModel, calibration: dict[str, Calibration], facts: dict[str, Any]
) -> str:
    """Write both files, each through a temporary and a rename; returns the digest."""
    card = {
        "format": FORMAT,
        "layout": model.layout.to_json(),
        "size": asdict(model.size),
        "normaliser": model.normaliser.to_json(),
        "calibration": {target: asdict(c) for target, c in calibration.items()},
        "facts": facts,
    }
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    card_bytes = json.dumps(card, indent=1, sort_keys=True, default=str).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((WEIGHTS, weights), (CARD, card_bytes)):
        draft = folder / f"{name}.draft"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / name)
    return digest_of(weights, card_bytes)


def read_artifact(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of both files: weights, card.

    Raises:
        ModelError: a file is missing.
    """
    try:
        return (folder / WEIGHTS).read_bytes(), (folder / CARD).read_bytes()
    except OSError as error:
        raise ModelError(
            f"expected {WEIGHTS} and {CARD} in {folder}: {error.strerror}; run the stage 'train'"
        ) from error


def digest_of(weights: bytes, card: bytes) -> str:
    """sha256 (hex) over the weights' and the card's own sha256."""
    parts = hashlib.sha256(weights).digest() + hashlib.sha256(card).digest()
    return hashlib.sha256(parts).hexdigest()


def open_artifact(weights: bytes, card: bytes, expected_digest: str) -> Artifact:
    """Build the model from both files' bytes, in evaluation mode.

    Raises:
        ModelError: the digest is not the expected one, or the files do not fit each other.
    """
    digest = digest_of(weights, card)
    if digest != expected_digest:
        raise ModelError(
            f"the model's files have digest {digest[:12]}…, the registry says {expected_digest[:12]}…: they "
            "were changed or damaged. Do not use them; train again or restore the files"
        )
    try:
        values = json.loads(card)
        if values["format"] != FORMAT:
            raise ModelError(
                f"model.json has format {values['format']}, this version reads {FORMAT}: run the stage 'train' again"
            )
        model = LargeActionModel(
            Layout.from_json(values["layout"]),
            ModelSize(**values["size"]),
            Normaliser.from_json(values["normaliser"]),
        )
        model.load_state_dict(load(weights))
        calibration = {target: Calibration(**c) for target, c in values["calibration"].items()}
        facts = dict(values["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model's files do not fit each other: {error}") from error
    model.eval()
    return Artifact(model, calibration, facts, digest)


def as_batch(block: dict[str, Any], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Numpy columns of blocks as tensors; on their way to a GPU the host does not wait for them."""
    tensors = {name: torch.from_numpy(values) for name, values in block.items()}
    if device is None or device.type == "cpu":
        return tensors
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
