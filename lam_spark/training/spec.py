"""Specification of one training: files, sizes, settings and periods. Plain data, saved as JSON for the workers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lam_spark.config import Config, TrainingConfig
from lam_spark.model.transformer import ModelSize
from lam_spark.training_data.layout import Layout

# Output of the workers. It may quote a customer's row, so it never leaves the training folder.
LOG_FILE = "worker.log"
SPEC_FILE = "spec.json"
# Raise when the order or the meaning of a checkpoint's tensors changes: other versions are then not resumed.
CHECKPOINT_FORMAT = 3
# Settings that do not change the trained weights.
NOT_DECISIVE = ("checkpoint_minutes", "experiment", "activation_checkpointing")
# Prefixes of environment variables that give access to MLflow.
_MLFLOW_PREFIXES = ("MLFLOW_", "DATABRICKS_TOKEN")


def size_of(config: Config) -> ModelSize:
    """Model size of a configuration."""
    model = config.model
    return ModelSize(model.d_model, model.n_layers, model.n_heads, model.dropout, model.numeric_bins)


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that a training process needs.

    Attributes:
        layout: fields and shapes of a block.
        size: size of the model.
        settings: the configuration's section `training`.
        all_urls, queried_urls: Parquet files of one pinned version of the snapshot; `queried_urls` hold queries.
        validation_start, test_start: microseconds UTC.
        numeric_mean, numeric_std, numeric_edges: statistics of each numeric field's signed log before
            `validation_start`.
        target: the target that is scored.
        target_weights: weights of the targets' losses, in the layout's order.
        folder: folder of the artifact, the checkpoints and the progress file.
        facts: entries of the model card; they do not change the training.
        value_embeddings_digest: sha256 of the file of value embeddings in the folder; empty without any.
        validated_targets: targets with enough validation queries to select the epoch and to be calibrated; None: all.
        vocabulary_digest: sha256 of the vocabulary behind the ids (`sequences.vocabulary.vocabulary_digest`).
        secrets: names of environment variables that the workers must not see.
    """

    layout: Layout
    size: ModelSize
    settings: TrainingConfig
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
    validated_targets: tuple[str, ...] | None = None
    value_embeddings_digest: str = ""
    vocabulary_digest: str = ""
    secrets: tuple[str, ...] = ()

    def withholds(self, variable: str) -> bool:
        """Whether the workers must not see an environment variable: a secret, or access to MLflow."""
        return variable in self.secrets or variable.startswith(_MLFLOW_PREFIXES)

    def to_json(self) -> dict[str, Any]:
        """Values that `json.dumps(default=str)` accepts."""
        return dataclasses.asdict(self) | {"settings": self.settings.model_dump(mode="json")}

    def save(self, path: Path) -> None:
        """Write the specification as JSON, atomically."""
        draft = path.with_name(f"{path.name}.draft")
        draft.write_text(json.dumps(self.to_json(), default=str))
        draft.rename(path)

    @classmethod
    def load(cls, path: Path) -> TrainingSpec:
        """Read a specification that `save` wrote.

        Raises:
            ValidationError: the settings do not fit `TrainingConfig`.
        """
        saved = json.loads(path.read_text())
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()}
        values["layout"] = Layout.from_json(saved["layout"])
        values["size"] = ModelSize(**saved["size"])
        values["settings"] = TrainingConfig.model_validate(saved["settings"])
        values["numeric_edges"] = tuple(tuple(edges) for edges in saved["numeric_edges"])
        return cls(**values)

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides the trained weights; a checkpoint is valid for one fingerprint."""
        values = self.to_json() | {"format": CHECKPOINT_FORMAT}
        # Numeric statistics may differ between runs: Spark adds floats in any order. A resumed training keeps its own.
        for name in ("folder", "facts", "secrets", "numeric_mean", "numeric_std", "numeric_edges"):
            del values[name]
        for name in NOT_DECISIVE:
            del values["settings"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
