"""MLflow: parameters, metrics by step, the data's versions, the artifact, and the registry.

A database is used (SQLite under the workspace, unless MLFLOW_TRACKING_URI names a server). Models are
registered as plain files with their sha256; nothing is pickled.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.errors import ModelError, without_values
from lam_spark.model.artifact import CARD, WEIGHTS, read_artifact
from lam_spark.runtime.log import Journal
from lam_spark.runtime.provenance import git_commit, package_versions
from lam_spark.storage.files import whole_records
from lam_spark.training.spec import LOG_FILE, NOT_DECISIVE, TrainingSpec

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

# Arguments of MLflow's log_batch as JSON: rows of metrics, params and tags.
_Batch = dict[str, list[list[Any]]]

_ARTIFACT_PATH = "model"
_NOT_METRICS = ("event", "phase", "epoch", "step", "steps", "seconds_left")
# Of a finished training; it took seconds of cores or of GPUs.
_COST = ("seconds", "core_seconds", "gpu_seconds", "tokens", "flops", "parameters")
# Error codes of a server or database that does not answer, or has no time.
_DOWN = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
_INVALID = "INVALID_PARAMETER_VALUE"
_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
_SECONDS_BETWEEN_TRIES = 30.0
# In the training's folder: the run that a training which is resumed goes on with.
_RUN_FILE = "mlflow_run"
_SPOOL_FILE = "mlflow_spool.jsonl"
# How the addresses of servers begin.
_SERVERS = ("http", "databricks")


def _address(config: Config) -> str:
    """Where MLflow is asked: a server or a database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{config.workspace / 'mlflow' / 'mlflow.db'}"


def _client(config: Config) -> Any:
    """MLflow's client.

    Raises:
        MlflowException: a database does not answer; a server is asked later.
    """
    # Import late and quietly: it costs seconds, and only training and scoring need it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default minutes pass before it says so
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password that is in it
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # a page of database migrations is no news to anybody
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = config.workspace / "mlflow"
    uri = _address(config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except SQLAlchemyError as error:
        raise MlflowException(without_values(error), TEMPORARILY_UNAVAILABLE) from None


def _reaction(error: MlflowException) -> str:
    """What MLflow does, without its own text: that may quote its address with a password in it."""
    return "cannot be reached" if error.error_code in _DOWN else "refuses"


class Tracking:
    """One MLflow run, as a context manager; a training that is resumed goes on with the run that it began.

    While MLflow cannot be reached or refuses (a token that ended, say), what it should know is kept in the training's
    folder and training goes on; it is told as soon as it takes it again, at the latest when the model is registered.
    If the run is lost (deleted, or another server is asked now), another one is begun and told the settings and
    whatever the first was not told.

    Args:
        config: says where.
        run_id: of the stage.
        folder: of the training.
        journal: is told when MLflow cannot be reached or refuses, and when it answers again.
    """

    def __init__(self, config: Config, run_id: str, folder: Path, journal: Journal) -> None:
        self.config, self.run_id, self.folder, self.journal = config, run_id, folder, journal
        self.id = ""
        self._spool = folder / _SPOOL_FILE
        # What MLflow has not been told yet, a request each.
        self._untold: list[_Batch] = whole_records(self._spool)
        # What `start` tells.
        self._settings: list[_Batch] = []
        self._down_until = 0.0
        # What is wrong, for people; nothing while it answers.
        self._trouble = ""

    @functools.cached_property
    def client(self) -> Any:
        """MLflow's, made when it is first asked."""
        return _client(self.config)

    def __enter__(self) -> Self:
        self._catch_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FAILED" if error else "FINISHED"
        if self._catch_up():
            self._answers(lambda: self.client.set_terminated(self.id, status))

    def start(self, spec: TrainingSpec, versions: dict[str, int]) -> None:
        """Log what repeats the run: every setting, the sizes, the tables' versions, the code's and its libraries'."""
        settings = {f"training.{k}": v for k, v in spec.settings.items()}
        sizes = {f"model.{k}": v for k, v in vars(spec.size).items()}
        # MLflow lets no parameter change, and these may when a training is resumed.
        free = {f"training.{name}": str(settings.pop(f"training.{name}")) for name in NOT_DECISIVE}
        tags = {f"delta.{table}": str(version) for table, version in versions.items()} | free
        tags |= {"lam_spark.run_id": self.run_id, "config_digest": self.config.digest()}
        tags |= {"lam_spark": __version__, "git_commit": git_commit()}
        tags |= {f"version.{name}": version for name, version in package_versions().items()}
        self._settings = [self._tell(params=settings | sizes, tags=tags)]

    def log(self, record: dict[str, Any]) -> None:
        """Log a progress record's numbers: losses by step within their phase, validation by epoch."""
        if record["event"] == "done":
            self._tell(
                metrics={name: float(record["facts"][name]) for name in _COST if name in record["facts"]}
            )
            return
        phase, step = record["phase"].replace(" ", "_"), record["epoch"]
        if "steps" in record:
            step = (record["epoch"] - 1) * record["steps"] + record["step"]
        numbers = {k: v for k, v in record.items() if k not in _NOT_METRICS and isinstance(v, int | float)}
        self._tell(step, metrics={f"{phase}.{k.replace(' ', '_')}": float(v) for k, v in numbers.items()})

    def _tell(
        self,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> _Batch:
        """Send one batch, or keep it for later."""
        now = int(time.time() * 1000)
        batch: _Batch = {
            "metrics": [[name, value, now, step] for name, value in (metrics or {}).items()],
            "params": [[name, str(value)] for name, value in (params or {}).items()],
            "tags": [[name, value] for name, value in (tags or {}).items()],
        }
        self._untold.append(batch)
        if not self._catch_up():
            with self._spool.open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch) + "\n")
        return batch

    def _catch_up(self, at_once: bool = False) -> bool:
        """Tell MLflow what it has not been told, unless it has just failed to answer; whether it knows all now."""
        if time.monotonic() < self._down_until and not at_once:
            return False
        told = len(self._untold)
        if not self._answers(self._send_untold):
            return False
        if self._trouble:
            self._down_until, self._trouble = 0.0, ""
            self.journal.event("mlflow answers again", told=told)
        # What was told twice after a crash in between is the same twice.
        self._spool.unlink(missing_ok=True)
        return True

    def _send_untold(self) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        self._begin()
        while self._untold:
            batch = self._untold[0]
            try:
                self.client.log_batch(
                    self.id,
                    metrics=[Metric(*values) for values in batch["metrics"]],
                    params=[Param(*values) for values in batch["params"]],
                    tags=[RunTag(*values) for values in batch["tags"]],
                )
            except MlflowException as error:
                # Of a deleted run it says the same.
                if error.error_code != _INVALID or not self._has(self.id):
                    raise
                names = [row[0] for rows in batch.values() for row in rows]
                self.journal.event("mlflow refuses a batch", level="warning", names=names)
            del self._untold[0]

    def _answers(self, ask: Callable[[], Any]) -> bool:
        """Ask MLflow something; False where it cannot be reached or refuses, which is told once."""
        from mlflow.exceptions import MlflowException

        try:
            ask()
        except MlflowException as error:
            self._note(error)
            return False
        return True

    def _note(self, error: MlflowException) -> None:
        """Leave MLflow alone for a while, and look then whether the run is still there."""
        trouble = f"MLflow {_reaction(error)} ({error.error_code})"
        if trouble != self._trouble:
            self.journal.event(f"mlflow {_reaction(error)}", level="warning", error=error.error_code)
        self.id, self._trouble = "", trouble
        self._down_until = time.monotonic() + _SECONDS_BETWEEN_TRIES

    def _has(self, run_id: str) -> bool:
        """Whether MLflow has this run, and it is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != _NOT_THERE:
                raise
            return False
        return bool(run.info.lifecycle_stage == "active")

    def _begin(self) -> None:
        """Find the run that this training has begun, or begin one."""
        if self.id:
            return
        file = self.folder / _RUN_FILE
        begun = file.read_text(encoding="utf-8") if file.exists() else ""
        if begun and self._has(begun):
            self.client.update_run(begun, status="RUNNING")
            self.id = begun
            return
        name = self.config.training.experiment
        experiment = self.client.get_experiment_by_name(name)
        # A server has a store of files of its own; a database has none.
        files = (self.config.workspace / "mlflow" / "artifacts").as_uri()
        location = None if _address(self.config).startswith(_SERVERS) else files
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(name, artifact_location=location)
        )
        self.id = self.client.create_run(experiment_id, run_name=self.run_id).info.run_id
        file.write_text(self.id, encoding="utf-8")
        if begun:
            self._untold[:0] = self._settings
            self.journal.event("mlflow run lost", level="warning", lost=begun, begun=self.id)

    def register(self, folder: Path, digest: str) -> int:
        """Keep the artifact, register it as a version of the data set's model, and move the alias.

        Configuration, specification and progress are kept beside it; the ranks' log, which may quote rows, is not.

        Raises:
            ModelError: MLflow or its store of files cannot be reached, or refuses; the model waits in the folder for
                the stage's next run.
        """
        from mlflow.exceptions import MlflowException

        if self._catch_up(at_once=True):
            try:
                return self._register(folder, digest)
            except MlflowException as error:
                self._note(error)
            except Exception as error:  # a store of files raises whatever its own client does
                self._trouble = f"MLflow's store of files refuses: {without_values(error)}"
        raise ModelError(
            f"{self._trouble}, so the model is not registered: it is trained and waits in {self.folder}. "
            "Run the stage 'train' again when MLflow takes it: it will only register it"
        )

    def _register(self, folder: Path, digest: str) -> int:
        name = self.config.name
        # A run that was killed before it swept the folder has registered this model already.
        of_run = self.client.search_model_versions(f"run_id = '{self.id}'")
        found = [v.version for v in of_run if (v.name, v.tags.get("sha256")) == (name, digest)]
        version = found[0] if found else self._new_version(name, folder, digest)
        self.client.set_registered_model_alias(name, self.config.scoring.alias, version)
        return int(version)

    def _new_version(self, name: str, folder: Path, digest: str) -> Any:
        for file in sorted(folder.iterdir()):
            if file.name in (_RUN_FILE, _SPOOL_FILE, LOG_FILE) or file.is_dir():
                continue
            place = _ARTIFACT_PATH if file.name in (WEIGHTS, CARD) else "training"
            self.client.log_artifact(self.id, str(file), place)
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        source = f"{self.client.get_run(self.id).info.artifact_uri}/{_ARTIFACT_PATH}"
        tags = {"sha256": digest, "lam_spark.run_id": self.run_id}
        return self.client.create_model_version(name, source=source, run_id=self.id, tags=tags).version


def registered_model(config: Config) -> tuple[bytes, bytes, str, int]:
    """The bytes of the model behind the alias, its registered sha256 and its version.

    Raises:
        ModelError: no model has the alias, its files are gone, or MLflow cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    name, alias = config.name, config.scoring.alias
    try:
        client = _client(config)
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        expected = f"expected a registered model {name!r} with the alias {alias!r}"
        if error.error_code in (_NOT_THERE, _INVALID):  # no such model; no such alias of it
            raise ModelError(f"{expected}, found none: run the stage 'train'") from None
        raise ModelError(
            f"{expected}, but MLflow {_reaction(error)} ({error.error_code}): run this again when it answers"
        ) from None
    digest = version.tags.get("sha256")
    if digest is None:
        raise ModelError(f"version {version.version} of {name!r} has no sha256 in the registry: train again")
    gone = f"the files of {name!r} version {version.version} cannot be fetched"
    with tempfile.TemporaryDirectory(prefix="lam_spark-model-") as place:
        try:
            folder = client.download_artifacts(version.run_id, _ARTIFACT_PATH, place)
        except MlflowException as error:
            raise ModelError(f"{gone}: MLflow {_reaction(error)} ({error.error_code})") from None
        except OSError as error:
            raise ModelError(f"{gone}: {without_values(error)}") from None
        weights, card = read_artifact(Path(folder))
    return weights, card, digest, int(version.version)
