"""The specification of a training, after checks that the snapshot may still be used and fits the configuration."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config, Periods
from lam_spark.config.definition import model_definition
from lam_spark.consent.eligibility import eligible_customers
from lam_spark.consent.guards import ConsentCheck, require_assigned, require_not_withdrawn
from lam_spark.errors import DataQualityError, ModelError
from lam_spark.events.known_at import known_before
from lam_spark.labels.freshness import PERIODS
from lam_spark.labels.freshness import VOCABULARY as NUMBERING
from lam_spark.labels.splits import TRAIN, VALIDATION, too_few
from lam_spark.model.card import DEFINITION, TEST_START, VOCABULARY
from lam_spark.sequences.definitions import require_definition
from lam_spark.sequences.vocabulary import is_numbered_by, vocabulary_digest
from lam_spark.storage.dataframes import FrameCache, one_row
from lam_spark.storage.tables.store import Tables
from lam_spark.training.spec import TrainingSpec, size_of
from lam_spark.training_data.layout import SPLIT_IDS, Layout, Target
from lam_spark.training_data.stage import QUERIED

# Smaller deviations count as constant.
_MIN_DEVIATION = 1e-4
# Fact of the model card: target -> why it was not validated.
TOO_FEW = "validation_too_few"


@dataclass(frozen=True)
class CheckedSnapshot:
    """A version of `training_blocks` that may be trained on, and what it was made from.

    Attributes:
        version: Version of the table.
        periods: Dates of the periods, as in the examples.
        sizes: Ids in use per categorical field, as in the examples.
    """

    version: int
    periods: Periods
    sizes: dict[str, int]


def require_snapshot(tables: Tables, cache: FrameCache, config: Config, at: dt.datetime) -> CheckedSnapshot:
    """Check that the newest snapshot may be used now and was made for the configuration.

    The ledger is read again: the snapshot may be days old, and a training may be resumed days later.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: The present configuration.
        at: Instant at which consent statements must be effective.

    Raises:
        ConfigError: There is no snapshot.
        ConsentError: A customer whose events are in the snapshot is not eligible for training any more.
        DataQualityError: The snapshot was made for another configuration.
        ModelError: The snapshot was packed with another vocabulary.
    """
    version = tables.version("training_blocks")
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
    require_definition(tables, config, "training_blocks")
    if not is_numbered_by(tables.read("vocabulary"), metadata.get(NUMBERING)):
        raise ModelError(
            "the training snapshot holds the token ids of another vocabulary, or does not record which: run the "
            "stages 'sequences' (with sequences.rebuild=true), 'examples' and 'snapshot' again"
        )
    periods = Periods.from_metadata(metadata[PERIODS])
    require_assigned(
        tables,
        cache,
        metadata.get("events_version"),
        config.instant(periods.test_start),
        purpose,
        at,
        data_name=snapshot,
        remedy="run the stages 'sequences', 'examples' and 'snapshot' again",
    )
    return CheckedSnapshot(version, periods, dict(metadata[NUMBERING]["sizes"]))


def specification(
    tables: Tables,
    cache: FrameCache,
    config: Config,
    snapshot: CheckedSnapshot,
    *,
    folder: Path,
    layout: Layout,
    value_embeddings_digest: str,
    run_id: str,
    at: dt.datetime,
) -> TrainingSpec:
    """How a snapshot is trained on, according to the configuration.

    Dates are those of the snapshot, not of the present `as_of`: a training that is resumed in a later night is the
    same training. Cost: a pass over the labels of the blocks, and one over the numeric fields of the events.

    Args:
        tables: Tables of the workspace.
        cache: Cache of the stage.
        config: Configuration of the data set.
        snapshot: From `require_snapshot`.
        folder: Working folder of the training.
        layout: Layout of the snapshot's blocks.
        value_embeddings_digest: Digest of the value embeddings in the folder.
        run_id: Run that trains.
        at: Instant at which consent statements must be effective.

    Raises:
        DataQualityError: The training period has too few queries (`quality.min_positives`).
        ModelError: The snapshot was packed for another layout.
    """
    version, periods = snapshot.version, snapshot.periods
    blocks = tables.read("training_blocks", version)
    first = blocks.select("packing").first()
    if first is None or first["packing"] != layout.packing_digest:
        raise ModelError(
            "the training snapshot was packed for other fields, targets, windows or sizes than the configuration and "
            "the vocabulary give now: run the stage 'snapshot' again"
        )
    not_validated = _require_enough_queries(blocks, layout, config.quality.min_positives)
    mean, std, edges = _numeric_scales(tables, cache, config, periods, at)
    vocabulary = vocabulary_digest(tables.read("vocabulary"), layout.ids_in_use)
    return TrainingSpec(
        layout=layout,
        size=size_of(config),
        settings=config.training,
        all_urls=tuple(tables.files("training_blocks", version)),
        queried_urls=tuple(tables.files("training_blocks", version, f"block_kind = '{QUERIED}'")),
        validation_start=config.micros(periods.validation_start),
        test_start=config.micros(periods.test_start),
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
            TEST_START: config.instant(periods.test_start).isoformat(),
            DEFINITION: model_definition(config),
            TOO_FEW: not_validated,
        },
        validated_targets=tuple(target.name for target in layout.targets if target.name not in not_validated),
        value_embeddings_digest=value_embeddings_digest,
        vocabulary_digest=vocabulary,
        secrets=tuple(sorted(config.secret_variables)),
    )


def _require_enough_queries(blocks: DataFrame, layout: Layout, least: int) -> dict[str, str]:
    """Check that the training period has enough queries of every target.

    Returns:
        Target -> why it cannot be validated, for targets with too few queries in the validation period.

    Raises:
        DataQualityError: A target has too few queries in the training period.
    """
    cells = [(target, split) for split in (TRAIN, VALIDATION) for target in layout.targets]
    columns = [column for target, split in cells for column in _counted(layout, target, SPLIT_IDS[split])]
    counts = one_row(blocks.agg(*columns))
    few: dict[tuple[str, str], str] = {}
    for number, (target, split) in enumerate(cells):
        queries, positives = (int(value or 0) for value in counts[2 * number : 2 * number + 2])
        why = too_few(target.kind, queries, positives, least)
        if why:
            few[split, target.name] = why
    missing = [f"{target}: {why}" for (split, target), why in few.items() if split == TRAIN]
    if missing:
        raise DataQualityError(
            f"the training period has not enough queries to learn from. {'; '.join(missing)}. Check the label and the "
            "population, move split.train_start back or split.validation_start forward, or lower quality.min_positives"
        )
    return {target: why for (_, target), why in few.items()}


def _counted(layout: Layout, target: Target, split: int) -> tuple[Column, Column]:
    """Aggregates over blocks: labelled queries of a target in a split, and those with a label above 0."""
    values = layout.values_per_query.get(f"label_{target.name}", 1)

    def label(query: Column) -> Column:
        return F.slice(f"label_{target.name}", query * values + 1, F.lit(values))

    def is_labelled(query: Column) -> Column:
        return (F.get("query_split", query) == split) & ~F.isnan(F.get(label(query), F.lit(0)))

    def is_positive(query: Column) -> Column:
        return is_labelled(query) & F.exists(label(query), lambda value: value > 0)

    queries = F.sequence(F.lit(0), F.lit(layout.queries_per_block - 1))
    return F.sum(F.size(F.filter(queries, is_labelled))), F.sum(F.size(F.filter(queries, is_positive)))


def _numeric_scales(
    tables: Tables, cache: FrameCache, config: Config, periods: Periods, at: dt.datetime
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Mean, deviation and bin edges of each numeric field's signed log.

    Over events known before the validation period, of customers eligible for training.
    """
    if not config.numeric:
        return (), (), ()
    allowed = eligible_customers(tables, cache, config.consent.training_purpose, at)
    events = known_before(tables.read("events"), config.micros(periods.validation_start))
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
