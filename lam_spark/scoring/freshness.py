"""Check that scores are answers to the question of the present configuration."""

from __future__ import annotations

import json

from lam_spark.config import Config
from lam_spark.config.definition import differences, scores_definition
from lam_spark.errors import DataQualityError, ModelError
from lam_spark.sequences.definitions import run_again
from lam_spark.storage.tables.store import Tables


def require_scores(tables: Tables, config: Config, recorded: str) -> None:
    """Check what scores were made for.

    Args:
        tables: Tables of the workspace.
        config: The present configuration.
        recorded: Column `definition` of the scores.

    Raises:
        DataQualityError: They were made for another configuration.
    """
    differing = differences(json.loads(recorded), scores_definition(config))
    if not differing:
        return
    # Imports torch, which readers of scores do not need otherwise.
    from lam_spark.scoring.udf import load_registered_model

    try:
        load_registered_model(tables, config, ())
        stage = "score"
    except ModelError:  # the model was made for another configuration, too
        stage = "train"
    raise DataQualityError(
        f"the scores of as_of {config.as_of} were made for another configuration, which differs in {differing}: "
        f"{run_again(tables, config, otherwise=stage)}"
    )
