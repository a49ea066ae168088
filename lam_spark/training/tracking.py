"""MLflow run of a training: parameters, metrics by step, table versions, code version.

By default MLflow uses a SQLite database in the workspace; `MLFLOW_TRACKING_URI` names another database or a server.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lam_spark import __version__
from lam_spark.config import Config
from lam_spark.errors import ModelError, without_values
from lam_spark.runtime.log import RunLog
from lam_spark.runtime.provenance import git_commit, package_versions
from lam_spark.storage.files import read_json_lines
from lam_spark.training.mlflow_client import INVALID, NOT_FOUND, artifact_location, create_client, failure
from lam_spark.training.spec import NOT_DECISIVE, TrainingSpec
from lam_spark.training.summary import TrainingSummary

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

Value = TypeVar("Value")
# Arguments of MLflow's `log_batch` as JSON: rows of metrics, params and tags.
_Batch = dict[str, list[list[Any]]]

# Files in the training folder: the id of the MLflow run, and the batches that MLflow has not received.
RUN_FILE = "mlflow_run"
SPOOL_FILE = "mlflow_spool.jsonl"
_NOT_METRICS = ("event", "phase", "epoch", "step", "steps", "seconds_left")
_SECONDS_BETWEEN_TRIES = 30.0


class Tracking:
    """One MLflow run, as a context manager. A resumed training continues its run.

    While MLflow cannot be reached or refuses requests (an expired token, for example), batches are kept in a spool file
    in the training folder and training goes on. They are sent when MLflow accepts requests again, at the latest when
    the model is registered. If the run is lost (deleted, or the address names another server), a new run gets the
    parameters and every batch that was not sent.

    Args:
        config: the configuration.
        run_id: id of the stage's run.
        folder: training folder.
        logger: gets a record when MLflow fails and when it accepts requests again.

    Attributes:
        id: id of the MLflow run; empty while it is unknown.
    """

    def __init__(self, config: Config, run_id: str, folder: Path, logger: RunLog) -> None:
        self.config, self.run_id, self.folder, self.logger = config, run_id, folder, logger
        self.id = ""
        self._spool = folder / SPOOL_FILE
        self._pending: list[_Batch] = read_json_lines(self._spool)
        # The batch of `start`, for a run that replaces a lost one.
        self._settings: list[_Batch] = []
        self._down_until = 0.0
        # Last failure as a sentence; empty while MLflow accepts requests.
        self._failure = ""

    @functools.cached_property
    def client(self) -> Any:
        """MLflow client, created on first use."""
        return create_client(self.config)

    def __enter__(self) -> Self:
        self._flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FAILED" if error else "FINISHED"
        if self._flush():
            self._try(lambda: self.client.set_terminated(self.id, status))

    def start(self, spec: TrainingSpec, versions: dict[str, int]) -> None:
        """Log what is needed to repeat the training: settings, sizes, and versions of tables, code and libraries."""
        settings = {f"training.{k}": v for k, v in spec.settings.model_dump(mode="json").items()}
        sizes = {f"model.{k}": v for k, v in vars(spec.size).items()}
        # Tags, because MLflow parameters cannot change, and these may change when a training is resumed.
        changeable = {f"training.{name}": str(settings.pop(f"training.{name}")) for name in NOT_DECISIVE}
        tags = {f"delta.{table}": str(version) for table, version in versions.items()} | changeable
        tags |= {"lam_spark.run_id": self.run_id, "config_digest": self.config.digest()}
        tags |= {"lam_spark": __version__, "git_commit": git_commit()}
        tags |= {f"version.{name}": version for name, version in package_versions().items()}
        self._settings = [self._log_batch(params=settings | sizes, tags=tags)]

    def log(self, record: dict[str, Any]) -> None:
        """Log the numbers of a progress record: losses by step of the phase, validation by epoch, costs at the end."""
        if record["event"] == "done":
            self._log_batch(metrics=TrainingSummary.from_json(record["summary"]).costs())
            return
        phase, step = record["phase"].replace(" ", "_"), record["epoch"]
        if "steps" in record:
            step = (record["epoch"] - 1) * record["steps"] + record["step"]
        numbers = {k: v for k, v in record.items() if k not in _NOT_METRICS and isinstance(v, int | float)}
        self._log_batch(
            step, metrics={f"{phase}.{k.replace(' ', '_')}": float(v) for k, v in numbers.items()}
        )

    def require(self, request: Callable[[], Value], consequence: str) -> Value:
        """Send all pending batches, then make a request that must succeed.

        Args:
            request: uses `client` and `id`.
            consequence: end of the error message: what was not done, and what to do.

        Raises:
            ModelError: MLflow or its artifact store cannot be reached, or refuses.
        """
        from mlflow.exceptions import MlflowException

        if self._flush(force=True):
            try:
                return request()
            except MlflowException as error:
                self._set_down(error)
            except Exception as error:  # artifact stores raise exceptions of their own clients
                self._failure = f"MLflow's artifact store refuses: {without_values(error)}"
        raise ModelError(f"{self._failure}, {consequence}")

    def _log_batch(
        self,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> _Batch:
        """Send one batch, or write it to the spool file."""
        now = int(time.time() * 1000)
        batch: _Batch = {
            "metrics": [[name, value, now, step] for name, value in (metrics or {}).items()],
            "params": [[name, str(value)] for name, value in (params or {}).items()],
            "tags": [[name, value] for name, value in (tags or {}).items()],
        }
        self._pending.append(batch)
        if not self._flush():
            with self._spool.open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch) + "\n")
        return batch

    def _flush(self, force: bool = False) -> bool:
        """Send pending batches; returns whether MLflow has received all.

        Args:
            force: also try shortly after a failure.
        """
        if time.monotonic() < self._down_until and not force:
            return False
        pending = len(self._pending)
        if not self._try(self._send_pending):
            return False
        if self._failure:
            self._down_until, self._failure = 0.0, ""
            self.logger.event("mlflow accepts requests again", batches=pending)
        # After a crash batches may be sent twice, which changes nothing.
        self._spool.unlink(missing_ok=True)
        return True

    def _send_pending(self) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        self._open_run()
        while self._pending:
            batch = self._pending[0]
            try:
                self.client.log_batch(
                    self.id,
                    metrics=[Metric(*values) for values in batch["metrics"]],
                    params=[Param(*values) for values in batch["params"]],
                    tags=[RunTag(*values) for values in batch["tags"]],
                )
            except MlflowException as error:
                # A deleted run gives the same error code as an invalid batch.
                if error.error_code != INVALID or not self._exists(self.id):
                    raise
                names = [row[0] for rows in batch.values() for row in rows]
                self.logger.event("mlflow refuses a batch", level="warning", names=names)
            del self._pending[0]

    def _try(self, request: Callable[[], Any]) -> bool:
        """Make a request; returns False if MLflow cannot be reached or refuses."""
        from mlflow.exceptions import MlflowException

        try:
            request()
        except MlflowException as error:
            self._set_down(error)
            return False
        return True

    def _set_down(self, error: MlflowException) -> None:
        """Stop requests for a while, and look for the run again afterwards; the same failure is logged once."""
        message = f"MLflow {failure(error)} ({error.error_code})"
        if message != self._failure:
            self.logger.event(f"mlflow {failure(error)}", level="warning", error=error.error_code)
        self.id, self._failure = "", message
        self._down_until = time.monotonic() + _SECONDS_BETWEEN_TRIES

    def _exists(self, run_id: str) -> bool:
        """Whether MLflow has the run and it is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
            return False
        return bool(run.info.lifecycle_stage == "active")

    def _open_run(self) -> None:
        """Continue the run of this training, or create one."""
        if self.id:
            return
        file = self.folder / RUN_FILE
        previous = file.read_text(encoding="utf-8") if file.exists() else ""
        if previous and self._exists(previous):
            self.client.update_run(previous, status="RUNNING")
            self.id = previous
            return
        name = self.config.training.experiment
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(name, artifact_location=artifact_location(self.config))
        )
        self.id = self.client.create_run(experiment_id, run_name=self.run_id).info.run_id
        file.write_text(self.id, encoding="utf-8")
        if previous:
            self._pending[:0] = self._settings
            self.logger.event("mlflow run lost", level="warning", lost=previous, new=self.id)
