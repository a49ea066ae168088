"""Stage `snapshot`: packed training blocks, written as one Delta version that training pins.

The blocks hold no event that became known, and no label, at or after the test period, and only customers who are
eligible for training now. Rows do not identify customers: the consent check is stored with the commit, so that `train`
can repeat it. Cost: one shuffle by customer; a task holds one customer and 64 open blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import SnapshotConfig
from lam_spark.config.definition import snapshot_definition
from lam_spark.consent.eligibility import eligible_customers
from lam_spark.consent.guards import consent_check
from lam_spark.errors import DataQualityError
from lam_spark.labels.freshness import AS_OF, EVENTS_VERSION, PERIODS, VOCABULARY, require_examples
from lam_spark.labels.splits import STRADDLING, TRAIN, VALIDATION
from lam_spark.runtime.context import RunContext, stage
from lam_spark.runtime.results import StageResult
from lam_spark.sequences.definitions import DEFINITION
from lam_spark.sequences.vocabulary import numbering, vocabulary_sizes
from lam_spark.storage.dataframes import one_row
from lam_spark.storage.session_settings import session_settings
from lam_spark.storage.tables.store import Tables
from lam_spark.storage.time import micros
from lam_spark.training_data.columns import (
    collect_queries,
    customers,
    event_columns,
    layout_with,
    truncated_rows,
    with_complete_history,
    with_known_ids,
)
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, Packer, prepare

# Key of the commit metadata of `training_blocks`, in addition to those of `labels.freshness`: a `ConsentCheck`.
CONSENT_CHECK = "consent_check"
# Kinds of blocks: fine-tuning reads windows with queries, pre-training reads both.
QUERIED, PLAIN = "queried", "plain"
_BLOCKS_PER_FRAME = 64


@dataclass(frozen=True)
class SnapshotResult(StageResult):
    """Size of the snapshot.

    Attributes:
        blocks: Blocks written.
        block_events: Event slots of a block.
        slots_filled: Event slots that hold an event.
        events_new: Distinct events; overlapping windows repeat some.
        queries: Queries in the blocks.
        queries_without_complete_history: Examples left out because their customer's row lacks events that the
            prediction uses (`columns.truncated_rows`).
    """

    blocks: int
    block_events: int
    slots_filled: int
    events_new: int
    queries: int
    queries_without_complete_history: int

    @property
    def filled_share(self) -> float:
        """Share of the event slots that hold an event."""
        return self.slots_filled / (self.blocks * self.block_events)

    @property
    def message(self) -> str:
        """One line for people."""
        return (
            f"{self.blocks:,} blocks of {self.block_events}, {self.filled_share:.0%} filled: {self.events_new:,} "
            f"events, {self.queries:,} queries"
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """All integer fields but the configured size of a block."""
        return {name: count for name, count in super().counts.items() if name != "block_events"}


@stage
def build_snapshot(ctx: RunContext) -> SnapshotResult:
    """Publish `training_blocks` (grain: a block; columns of `Layout.columns`, `block_kind`, `packing`).

    Raises:
        ConsentError: No customer is eligible for training, or events were deleted or reassigned.
        DataQualityError: There is nothing to train on, or tables were made for another configuration or other dates
            (`require_examples`).
    """
    config, tables, cache = ctx.config, ctx.tables, ctx.cache
    purpose, at = config.consent.training_purpose, ctx.started_at
    checked = require_examples(tables, cache, config, at)
    vocabulary = tables.read("vocabulary")
    layout = layout_with(config, checked.sizes)
    eligible = eligible_customers(tables, cache, purpose, at)
    metadata = {
        DEFINITION: snapshot_definition(config),
        AS_OF: ctx.as_of.isoformat(),
        PERIODS: checked.periods.to_metadata(),
        EVENTS_VERSION: checked.events_version,
        VOCABULARY: numbering(vocabulary, layout.ids_in_use),
        CONSENT_CHECK: dataclasses.asdict(consent_check(tables, purpose, at)),
    }
    sequences = tables.read("sequences").join(eligible, "customer_key", "left_semi")
    if sequences.isEmpty():
        raise DataQualityError(
            "there is no sequence of a customer who is eligible for training: nothing to learn from"
        )
    is_trainable = F.col("split").isin(TRAIN, VALIDATION, STRADDLING)
    examples = tables.read("examples").where(is_trainable).join(eligible, "customer_key", "left_semi")
    truncated = cache(truncated_rows(sequences, layout))
    incomplete = with_complete_history(examples, truncated, complete=False).count()
    queries = collect_queries(with_complete_history(examples, truncated), layout)
    if vocabulary_sizes(vocabulary, config.categorical) != layout.ids_in_use:
        sequences = with_known_ids(sequences, layout)
    rows = _packer_rows(sequences, queries, layout, config.snapshot.files)
    # The sequences may have been built for a later as_of.
    until = min(config.micros(checked.periods.test_start), micros(ctx.as_of))
    blocks = _pack(rows, layout, until).withColumn("packing", F.lit(layout.packing_digest))
    written = _write(tables, blocks, config.snapshot, metadata)
    slots_filled, events_new, query_count = _count_slots(tables.read("training_blocks"))
    return SnapshotResult(written, layout.block_events, slots_filled, events_new, query_count, incomplete)


def _packer_rows(sequences: DataFrame, queries: DataFrame, layout: Layout, partitions: int) -> DataFrame:
    """Events and queries by customer, ordered by customer within partitions; without the key."""
    return (
        sequences.select(
            "customer_key", F.hash("customer_key").alias("customer_index"), *event_columns(layout)
        )
        .join(queries.drop("query_ids"), "customer_key", "left")
        # By a hash of the key: partitioned by the key itself, Spark would reuse and merge the join's partitions.
        .repartition(partitions, F.xxhash64("customer_key"))
        .sortWithinPartitions("customer_key")
        .drop("customer_key")
    )


def _write(
    tables: Tables, blocks: DataFrame, snapshot: SnapshotConfig, metadata: Mapping[str, object]
) -> int:
    """Write the blocks; returns how many.

    A file of at most `blocks_per_file` blocks is one Parquet row group (a new one starts after 128 MB). petastorm reads
    a file's footer once per row group: in files that grow with the data, that would take quadratic time.
    """
    settings = {"spark.sql.files.maxRecordsPerFile": str(snapshot.blocks_per_file)}
    with session_settings(tables.spark, settings):
        return tables.overwrite(blocks, "training_blocks", partition_by=["block_kind"], metadata=metadata)


def _count_slots(blocks: DataFrame) -> tuple[int, int, int]:
    """Filled event slots, slots with new events, and queries."""
    columns = ("window", "is_new", "query_window")
    used = [F.sum(F.size(F.filter(name, lambda slot: slot > 0))) for name in columns]
    filled, new, queries = (int(value) for value in one_row(blocks.agg(*used)))
    return filled, new, queries


def block_schema(layout: Layout) -> str:
    """Spark DDL of a block."""
    kinds = {"int32": "INT", "int64": "BIGINT", "float32": "FLOAT"}
    columns = [f"{name} ARRAY<{kinds[dtype]}>" for name, (dtype, _) in layout.columns.items()]
    return ", ".join([*columns, "block_kind STRING"])


def _pack(rows: DataFrame, layout: Layout, until: int) -> DataFrame:
    """Blocks of the customers' events known before `until` (microseconds UTC) and their queries."""

    def blocks_of(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        packers = {QUERIED: Packer(layout), PLAIN: Packer(layout)}

        def packed() -> Iterator[tuple[Block, str]]:
            for batch in batches:
                for customer in customers(layout, batch, until):
                    prepared = prepare(layout, customer)
                    for window in prepared.windows:
                        kind = QUERIED if len(window.queries) else PLAIN
                        for block in packers[kind].add_window(prepared, window, with_loss=True):
                            yield block, kind
            for kind, packer in packers.items():
                for block in packer.flush():
                    yield block, kind

        stream = packed()
        while chunk := list(itertools.islice(stream, _BLOCKS_PER_FRAME)):
            yield _as_frame(chunk)

    return rows.mapInPandas(blocks_of, block_schema(layout))


def _as_frame(blocks: list[tuple[Block, str]]) -> pd.DataFrame:
    columns: dict[str, list[object]] = {name: [block[name] for block, _ in blocks] for name in blocks[0][0]}
    return pd.DataFrame({**columns, "block_kind": [kind for _, kind in blocks]})
