"""What one training is: files, sizes, settings, periods. Plain data, saved as JSON for the ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lam_spark.config import Config
from lam_spark.model.transformer import ModelSize
from lam_spark.training_data.layout import Layout

# What the ranks print, which may quote a customer's row: it does not leave the training's folder.
LOG_FILE = "worker.log"
# The specification, in the same folder.
SPEC_FILE = "spec.json"
# Of a checkpoint: raised when the order or the meaning of its tensors changes, so that no other version's is read.
CHECKPOINT_FORMAT = 2
# Settings that change nothing of what comes out.
NOT_DECISIVE = ("checkpoint_minutes", "experiment", "activation_checkpointing")
# How variables begin that give access to MLflow.
_OF_MLFLOW = ("MLFLOW_", "DATABRICKS_TOKEN")


def size_of(config: Config) -> ModelSize:
    """The size of the model that a configuration asks for."""
    model = config.model
    return ModelSize(model.d_model, model.n_layers, model.n_heads, model.dropout, model.numeric_bins)


@dataclass(frozen=True)
class TrainingSpec:
    """Everything a rank needs; saved as JSON for the worker processes.

    Attributes:
        all_urls, queried_urls: Parquet files of one pinned version of the snapshot.
        validation_start, test_start: microseconds UTC.
        numeric_mean, numeric_std, numeric_edges: of each numeric field's signed log, before `validation_start`.
        target: the one that is scored.
        target_weights: of the targets' losses, in the layout's order.
        folder: where the artifact and the progress go.
        facts: kept in the model's card; they do not change what is trained.
        vectors_digest: of the file of fixed vectors in the folder; empty: no field has any.
        vocabulary_digest: of the values that the layout's ids stand for (`sequences.vocabulary.vocabulary_digest`).
        secrets: environment variables that ranks have no use for.
    """

    layout: Layout
    size: ModelSize
    settings: dict[str, Any]
    all_urls: tuple[str, ...]
    queried_urls: tuple[str, ...]
    validation_start: int
    test_start: int
    numeric_mean: tuple[float, ...]
    numeric_std: tuple[float, ...]
    numeric_edges: tuple[tuple[float, ...], ...]
    target: str
    target_weights: tuple[float, ...]
    folder: str
    facts: dict[str, Any]
    vectors_digest: str = ""
    vocabulary_digest: str = ""
    secrets: tuple[str, ...] = ()

    def withholds(self, variable: str) -> bool:
        """Whether ranks are not to have this environment variable: a secret, or what gives access to MLflow."""
        return variable in self.secrets or variable.startswith(_OF_MLFLOW)

    def save(self, path: Path) -> None:
        """Write as JSON; a reader finds the old one or the new one."""
        draft = path.with_name(f"{path.name}.draft")
        draft.write_text(json.dumps(dataclasses.asdict(self), default=str))
        draft.rename(path)

    @classmethod
    def load(cls, path: Path) -> TrainingSpec:
        """Inverse of `save`."""
        saved = json.loads(path.read_text())
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()}
        values["layout"] = Layout.from_json(saved["layout"])
        values["size"] = ModelSize(**saved["size"])
        values["numeric_edges"] = tuple(tuple(edges) for edges in saved["numeric_edges"])
        return cls(**values)

    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides what comes out: a checkpoint fits only the training that wrote it."""
        values = dataclasses.asdict(self) | {"format": CHECKPOINT_FORMAT}
        # What numbers are standardised by is of the events and the ledger as they are now, not of the snapshot, and
        # Spark adds floats in any order: a training that goes on keeps what it began with.
        for name in ("folder", "facts", "secrets", "numeric_mean", "numeric_std", "numeric_edges"):
            del values[name]
        for name in NOT_DECISIVE:
            del values["settings"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
