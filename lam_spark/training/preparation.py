"""The specification of a training, after checks that the snapshot may still be used and fits the configuration."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.consent.eligibility import eligible_customers
from lam_spark.consent.guards import ConsentCheck, require_assigned, require_not_withdrawn
from lam_spark.errors import ModelError
from lam_spark.events.known_at import known_before
from lam_spark.model.card import TEST_START, VOCABULARY
from lam_spark.sequences.vocabulary import is_numbered_by, vocabulary_digest
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.tables.store import Tables
from lam_spark.training.spec import TrainingSpec, size_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.stage import QUERIED

# Smaller deviations count as constant.
_MIN_DEVIATION = 1e-4


def specification(
    tables: Tables,
    cache: FrameCache,
    config: Config,
    *,
    folder: Path,
    layout: Layout,
    value_embeddings_digest: str,
    run_id: str,
    at: dt.datetime,
) -> TrainingSpec:
    """How the newest snapshot is trained on, according to the configuration.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: Configuration of the data set.
        folder: Working folder of the training.
        layout: Layout of the snapshot's blocks.
        value_embeddings_digest: Digest of the value embeddings in the folder.
        run_id: Run that trains.
        at: Instant at which consent statements must be effective.

    Raises:
        ConsentError: A customer whose events are in the snapshot is not eligible for training any more.
        ModelError: The snapshot was packed for another layout, other periods or with another vocabulary.
    """
    version = tables.version("training_blocks")
    require_consent(tables, cache, config, at)
    _require_fitting_blocks(tables, config, layout, version)
    mean, std, edges = _numeric_scales(tables, cache, config, at)
    vocabulary = vocabulary_digest(tables.read("vocabulary"), layout.ids_in_use)
    return TrainingSpec(
        layout=layout,
        size=size_of(config),
        settings=config.training,
        all_urls=tuple(tables.files("training_blocks", version)),
        queried_urls=tuple(tables.files("training_blocks", version, f"block_kind = '{QUERIED}'")),
        validation_start=config.micros(config.split.validation_start),
        test_start=config.micros(config.split.test_start),
        numeric_mean=mean,
        numeric_std=std,
        numeric_edges=edges,
        target=config.scoring.target,
        target_weights=tuple(target.weight for target in config.targets.values()),
        folder=str(folder),
        facts={
            "data_set": config.name,
            "target": config.scoring.target,
            "config_digest": config.digest(),
            "table_versions": {"training_blocks": version},
            "run_id": run_id,
            VOCABULARY: vocabulary,
            TEST_START: config.instant(config.split.test_start).isoformat(),
        },
        value_embeddings_digest=value_embeddings_digest,
        vocabulary_digest=vocabulary,
        secrets=tuple(sorted(config.secret_variables)),
    )


def require_consent(tables: Tables, cache: FrameCache, config: Config, at: dt.datetime) -> None:
    """Check that all customers of the newest snapshot still agree, by the newest ledger.

    The snapshot may be days old, and a training may take or be resumed days later.

    Raises:
        ConsentError: A customer withdrew, or events were reassigned, or it cannot be determined.
    """
    purpose, snapshot = config.consent.training_purpose, "the training snapshot"
    metadata = tables.commit_metadata("training_blocks") or {}
    stored = metadata.get("consent_check")
    require_not_withdrawn(
        tables,
        cache,
        None if stored is None else ConsentCheck(**stored),
        purpose,
        at,
        data_name=snapshot,
        remedy="run the stage 'snapshot' again",
    )
    require_assigned(
        tables,
        cache,
        metadata.get("events_version"),
        config.instant(config.split.test_start),
        purpose,
        at,
        data_name=snapshot,
        remedy="run the stages 'sequences', 'examples' and 'snapshot' again",
    )


def _require_fitting_blocks(tables: Tables, config: Config, layout: Layout, version: int) -> None:
    first = tables.read("training_blocks", version).select("packing").first()
    if first is None or first["packing"] != layout.packing_digest:
        raise ModelError(
            "the training snapshot was packed for other fields, targets, windows or sizes than the configuration and "
            "the vocabulary give now: run the stage 'snapshot' again"
        )
    metadata = tables.commit_metadata("training_blocks") or {}
    if not is_numbered_by(tables.read("vocabulary"), metadata.get("vocabulary")):
        raise ModelError(
            "the training snapshot holds the token ids of another vocabulary, or does not record which: run the "
            "stages 'sequences' (with sequences.rebuild=true), 'examples' and 'snapshot' again"
        )
    if metadata.get("periods") != config.split_instants():
        raise ModelError(
            "the training snapshot was packed for other dates of split than configured, and may hold events of the "
            "test period: run the stages 'examples' and 'snapshot' again"
        )


def _numeric_scales(
    tables: Tables, cache: FrameCache, config: Config, at: dt.datetime
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Mean, deviation and bin edges of each numeric field's signed log.

    Over events known before the validation period, of customers eligible for training.
    """
    if not config.numeric:
        return (), (), ()
    allowed = eligible_customers(tables, cache, config.consent.training_purpose, at)
    events = known_before(tables.read("events"), config.micros(config.split.validation_start))
    logs = [F.signum(name) * F.log1p(F.abs(F.col(name))) for name in config.numeric]
    bins = config.model.numeric_bins
    shares = F.lit([number / max(bins, 1) for number in range(bins + 1)])
    row = one_row(
        events.join(allowed, "customer_key", "left_semi").agg(
            *(F.coalesce(F.avg(log), F.lit(0.0)) for log in logs),
            *(F.coalesce(F.stddev_pop(log), F.lit(0.0)) for log in logs),
            *(F.percentile_approx(log, shares) for log in logs),
        )
    )
    count = len(logs)
    mean, std, quantiles = row[:count], row[count : 2 * count], row[2 * count :]
    edges = tuple(tuple(sorted(set(values or ()))) for values in quantiles)
    return tuple(mean), tuple(value if value > _MIN_DEVIATION else 1.0 for value in std), edges
