"""MLflow model registry: register a model version, move the alias, tag a version, fetch the model behind the alias.

Models are registered as plain files with their sha256; nothing is pickled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from lam_spark.config import Config
from lam_spark.errors import ModelError, without_values
from lam_spark.model.artifact import CARD, WEIGHTS, read_artifact
from lam_spark.training.mlflow_client import INVALID, NOT_FOUND, create_client, failure
from lam_spark.training.spec import LOG_FILE
from lam_spark.training.tracking import RUN_FILE, SPOOL_FILE, Tracking

_ARTIFACT_PATH = "model"
_TRAINING_PATH = "training"
# Files of the training folder that are not uploaded. The log may quote customers' rows.
_NOT_UPLOADED = (RUN_FILE, SPOOL_FILE, LOG_FILE)


def register_model(tracking: Tracking, folder: Path, digest: str) -> int:
    """Upload the artifact and register it as a version of the data set's model.

    Configuration, specification and progress are uploaded too; the workers' log, which may quote rows, is not. A run
    that was killed after it registered the model does not register it twice.

    Args:
        tracking: the training's MLflow run.
        folder: training folder with the artifact.
        digest: sha256 of the artifact.

    Returns:
        The version.

    Raises:
        ModelError: MLflow or its artifact store cannot be reached, or refuses; the model stays in the folder.
    """
    consequence = (
        f"so the model is not registered: it is trained and stays in {tracking.folder}. Run the stage 'train' again "
        "when MLflow accepts requests; it then only registers the model"
    )
    return tracking.require(lambda: _registered_version(tracking, folder, digest), consequence)


def set_alias(tracking: Tracking, version: int) -> None:
    """Move the alias `scoring.alias` of the data set's model to a version.

    Raises:
        ModelError: MLflow cannot be reached, or refuses; the model stays in the training folder.
    """
    name, alias = tracking.config.name, tracking.config.scoring.alias
    consequence = (
        f"so version {version} of {name!r} does not have the alias {alias!r}: the model stays in {tracking.folder}. "
        "Run the stage 'train' again when MLflow accepts requests; it then only sets the alias"
    )
    tracking.require(
        lambda: tracking.client.set_registered_model_alias(name, alias, str(version)), consequence
    )


def registered_model(config: Config) -> tuple[bytes, bytes, str, int]:
    """Fetch the model behind the alias.

    Returns:
        Weights, card, registered sha256 and version.

    Raises:
        ModelError: no model has the alias, its files are missing, or MLflow cannot be reached or refuses.
    """
    from mlflow.exceptions import MlflowException

    name, alias = config.name, config.scoring.alias
    try:
        client = create_client(config)
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        expected = f"expected a registered model {name!r} with the alias {alias!r}"
        if error.error_code in (NOT_FOUND, INVALID):  # no such model; no such alias
            raise ModelError(f"{expected}, found none: run the stage 'train'") from None
        raise ModelError(
            f"{expected}, but MLflow {failure(error)} ({error.error_code}): run this again when it accepts requests"
        ) from None
    digest = version.tags.get("sha256")
    if digest is None:
        raise ModelError(f"version {version.version} of {name!r} has no sha256 in the registry: train again")
    missing = f"the files of {name!r} version {version.version} cannot be fetched"
    with tempfile.TemporaryDirectory(prefix="lam_spark-model-") as temporary:
        try:
            folder = client.download_artifacts(version.run_id, _ARTIFACT_PATH, temporary)
        except MlflowException as error:
            raise ModelError(f"{missing}: MLflow {failure(error)} ({error.error_code})") from None
        except OSError as error:
            raise ModelError(f"{missing}: {without_values(error)}") from None
        weights, card = read_artifact(Path(folder))
    return weights, card, digest, int(version.version)


def tag_model_version(config: Config, version: int, tags: Mapping[str, str], prefix: str) -> None:
    """Set tags of a version of the data set's model, and remove its other tags that begin with `prefix`.

    Raises:
        ModelError: MLflow cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException

    name, number = config.name, str(version)
    try:
        client = create_client(config)
        present = client.get_model_version(name, number).tags
        for tag, value in tags.items():
            if present.get(tag) != value:
                client.set_model_version_tag(name, number, tag, value)
        for tag in present:
            if tag.startswith(prefix) and tag not in tags:
                client.delete_model_version_tag(name, number, tag)
    except MlflowException as error:
        raise ModelError(
            f"version {number} of {name!r} does not have the tags {prefix}*: MLflow {failure(error)} "
            f"({error.error_code}). Run this again when it accepts requests"
        ) from None


def _registered_version(tracking: Tracking, folder: Path, digest: str) -> int:
    """Version of this artifact, registered now unless this run has registered it before."""
    name = tracking.config.name
    versions = tracking.client.search_model_versions(f"run_id = '{tracking.id}'")
    for version in versions:
        if (version.name, version.tags.get("sha256")) == (name, digest):
            return int(version.version)
    return _create_version(tracking, folder, digest)


def _create_version(tracking: Tracking, folder: Path, digest: str) -> int:
    client, name = tracking.client, tracking.config.name
    for file in sorted(folder.iterdir()):
        if file.name in _NOT_UPLOADED or file.is_dir():
            continue
        path = _ARTIFACT_PATH if file.name in (WEIGHTS, CARD) else _TRAINING_PATH
        client.log_artifact(tracking.id, str(file), path)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(tracking.id).info.artifact_uri}/{_ARTIFACT_PATH}"
    tags = {"sha256": digest, "lam_spark.run_id": tracking.run_id}
    return int(client.create_model_version(name, source=source, run_id=tracking.id, tags=tags).version)
