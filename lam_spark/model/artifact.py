"""A saved model: `model.safetensors` (weights) and `model.json` (model card), identified by one sha256.

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
FORMAT = 6


@dataclass(frozen=True)
class Calibration:
    """Calibration of one target.

    A probability is sigmoid(slope * logit + intercept); an amount of a `value` target is slope * expectation.
    """

    slope: float
    intercept: float


@dataclass(frozen=True)
class Artifact:
    """A model that is ready for inference.

    Attributes:
        model: the model, in evaluation mode.
        calibration: target -> calibration of its logits.
        facts: metadata of the training run for readers (data versions, seed, metrics), and the keys that tie the
            model to its data (`model.card`).
        digest: sha256 over both files.
    """

    model: LargeActionModel
    calibration: dict[str, Calibration]
    facts: dict[str, Any]
    digest: str


def save_artifact(
    folder: Path, model: LargeActionModel, calibration: dict[str, Calibration], facts: dict[str, Any]
) -> str:
    """Write both files and return their digest; each is written to a temporary file and renamed."""
    card = {
        "format": FORMAT,
        "layout": model.layout.to_json(),
        "size": asdict(model.size),
        "normaliser": model.normaliser.to_json(),
        "calibration": {target: asdict(parameters) for target, parameters in calibration.items()},
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
    """Read the bytes of both files: weights, card.

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
    """Return the sha256 (hex) over the sha256 of the weights and of the card."""
    parts = hashlib.sha256(weights).digest() + hashlib.sha256(card).digest()
    return hashlib.sha256(parts).hexdigest()


def open_artifact(weights: bytes, card: bytes, expected_digest: str) -> Artifact:
    """Build the model from the bytes of both files, in evaluation mode.

    Raises:
        ModelError: the digest differs from the expected one, another version made the files, or they do not fit each
            other.
    """
    digest = digest_of(weights, card)
    if digest != expected_digest:
        raise ModelError(
            f"expected model files with digest {expected_digest[:12]}… as registered, got {digest[:12]}…: they "
            "were changed or damaged. Restore them or train again"
        )
    try:
        values = json.loads(card)
        if values["format"] != FORMAT:
            raise ModelError(
                f"expected format {FORMAT} in {CARD}, got {values['format']}: the model was made by another version. "
                "Run the stage 'train' again"
            )
        model = LargeActionModel(
            Layout.from_json(values["layout"]),
            ModelSize(**values["size"]),
            Normaliser.from_json(values["normaliser"]),
        )
        model.load_state_dict(load(weights))
        calibration = {name: Calibration(**parameters) for name, parameters in values["calibration"].items()}
        facts = dict(values["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"expected {WEIGHTS} and {CARD} of one model, got files that do not fit each other ({error}): "
            "run the stage 'train' again"
        ) from error
    model.eval()
    return Artifact(model, calibration, facts, digest)


def as_batch(block: dict[str, Any], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Convert the NumPy columns of blocks to tensors; copies to a GPU do not block the host."""
    tensors = {name: torch.from_numpy(values) for name, values in block.items()}
    if device is None or device.type == "cpu":
        return tensors
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
