"""MLflow: parameters, metrics by step, the data's versions, the artifact, and the registry.

A database is used (SQLite under the workspace, unless MLFLOW_TRACKING_URI names a server). Models are
registered as plain files with their sha256; nothing is pickled.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lam_spark.config import Config
from lam_spark.errors import ModelError
from lam_spark.model.artifact import CARD, WEIGHTS, read_artifact
from lam_spark.training.spec import TrainingSpec

_ARTIFACT_PATH = "model"
_NOT_METRICS = ("event", "phase", "epoch", "step", "steps", "seconds_left")
# In the training's folder: the run that a training which is resumed goes on with.
_RUN_FILE = "mlflow_run"


def _client(config: Config) -> Any:
    # Import late and quietly: it costs seconds, and only training and scoring need it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    for name in ("mlflow", "alembic"):  # a page of database migrations is no news to anybody
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = config.workspace / "mlflow"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


class Tracking:
    """One MLflow run, as a context manager; a training that is resumed goes on with the run that it began.

    Args:
        config: says where.
        run_id: of the stage.
        folder: of the training.
    """

    def __init__(self, config: Config, run_id: str, folder: Path) -> None:
        self.config, self.run_id, self.folder = config, run_id, folder
        self.client = _client(config)

    def __enter__(self) -> Self:
        begun = self.folder / _RUN_FILE
        if begun.exists():
            self.id = begun.read_text(encoding="utf-8")
            self.client.update_run(self.id, status="RUNNING")
            return self
        name = self.config.training.experiment
        experiment = self.client.get_experiment_by_name(name)
        location = (self.config.workspace / "mlflow" / "artifacts").as_uri()
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(name, artifact_location=location)
        )
        self.id = self.client.create_run(experiment_id, run_name=self.run_id).info.run_id
        begun.write_text(self.id, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.set_terminated(self.id, "FAILED" if error else "FINISHED")

    def start(self, spec: TrainingSpec, versions: dict[str, int]) -> None:
        """Log what repeats the run: every setting, the sizes, the tables' versions."""
        parameters = {
            **{f"training.{k}": v for k, v in spec.settings.items()},
            **{f"model.{k}": v for k, v in vars(spec.size).items()},
        }
        for key, value in parameters.items():
            self.client.log_param(self.id, key, value)
        tags = {f"delta.{table}": str(version) for table, version in versions.items()}
        tags |= {"lam_spark.run_id": self.run_id, "config_digest": self.config.digest()}
        for key, value in tags.items():
            self.client.set_tag(self.id, key, value)

    def log(self, record: dict[str, Any]) -> None:
        """Log a progress record's numbers: losses by step within their phase, validation by epoch."""
        from mlflow.entities import Metric

        if record["event"] == "done":
            for key in ("seconds", "core_seconds", "tokens", "parameters"):
                self.client.log_metric(self.id, key, float(record["facts"][key]))
            return
        phase, step = record["phase"].replace(" ", "_"), record["epoch"]
        if "steps" in record:
            step = (record["epoch"] - 1) * record["steps"] + record["step"]
        now = int(time.time() * 1000)
        values = {k: v for k, v in record.items() if k not in _NOT_METRICS and isinstance(v, int | float)}
        metrics = [
            Metric(f"{phase}.{key.replace(' ', '_')}", float(value), now, step)
            for key, value in values.items()
        ]
        self.client.log_batch(self.id, metrics=metrics)

    def register(self, folder: Path, digest: str) -> int:
        """Keep the artifact, register it as a version of the data set's model, and move the alias.

        What else is in the folder (specification, progress, the ranks' log) is kept beside it.
        """
        for file in sorted(folder.iterdir()):
            place = _ARTIFACT_PATH if file.name in (WEIGHTS, CARD) else "training"
            self.client.log_artifact(self.id, str(file), place)
        name = self.config.name
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        source = f"{self.client.get_run(self.id).info.artifact_uri}/{_ARTIFACT_PATH}"
        version = self.client.create_model_version(
            name, source=source, run_id=self.id, tags={"sha256": digest, "lam_spark.run_id": self.run_id}
        )
        self.client.set_registered_model_alias(name, self.config.scoring.alias, version.version)
        return int(version.version)


def registered_model(config: Config) -> tuple[bytes, bytes, str, int]:
    """The bytes of the model behind the alias, its registered sha256 and its version.

    Raises:
        ModelError: no model has the alias, or its files are gone.
    """
    from mlflow.exceptions import MlflowException

    client = _client(config)
    name, alias = config.name, config.scoring.alias
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise ModelError(
            f"expected a registered model {name!r} with the alias {alias!r}, found none: run the stage 'train'"
        ) from error
    digest = version.tags.get("sha256")
    if digest is None:
        raise ModelError(f"version {version.version} of {name!r} has no sha256 in the registry: train again")
    try:
        folder = client.download_artifacts(version.run_id, _ARTIFACT_PATH)
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"the files of {name!r} version {version.version} cannot be fetched: {error}"
        ) from error
    weights, card = read_artifact(Path(folder))
    return weights, card, digest, int(version.version)
