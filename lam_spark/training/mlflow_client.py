"""Client of MLflow: its address, its timeouts and its error codes."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from lam_spark.config import Config
from lam_spark.errors import without_values

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

INVALID = "INVALID_PARAMETER_VALUE"
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
# Error codes of a server or database that is down or overloaded.
_UNAVAILABLE = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
# Prefixes of the addresses of servers.
_SERVER_PREFIXES = ("http", "databricks")


def create_client(config: Config) -> Any:
    """MLflow client of a configuration's workspace.

    Raises:
        MlflowException: the database cannot be opened; a server is contacted by the first request only.
    """
    # Imported late: the import takes seconds, and most stages do not need MLflow.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default requests fail after minutes
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the URL may hold a password
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # hides a page of database migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = _address(config)
    (config.workspace / "mlflow").mkdir(parents=True, exist_ok=True)
    try:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    except SQLAlchemyError as error:
        raise MlflowException(without_values(error), TEMPORARILY_UNAVAILABLE) from None


def artifact_location(config: Config) -> str | None:
    """Where a new experiment stores files: the workspace for a database, None for a server with its own store."""
    if _address(config).startswith(_SERVER_PREFIXES):
        return None
    return (config.workspace / "mlflow" / "artifacts").as_uri()


def failure(error: MlflowException) -> str:
    """What MLflow does, without its own text, which may quote an address with a password."""
    return "cannot be reached" if error.error_code in _UNAVAILABLE else "refuses"


def _address(config: Config) -> str:
    """URI of the server or database: `MLFLOW_TRACKING_URI`, by default SQLite in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{config.workspace / 'mlflow' / 'mlflow.db'}"
