"""Stage `snapshot`: packed training blocks, written once as a Delta version that training pins.

Holds no event and no label at or after the test period, and nobody who is not eligible for training now. Its
rows do not say whose they are: how the ledger was asked is kept with them, so that `train` can ask again.
Cost: one shuffle by customer; a task holds one customer and 64 open blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.consent.eligibility import asked_now, eligible
from lam_spark.errors import DataQualityError
from lam_spark.labels.stage import STRADDLING, TRAIN, VALIDATION
from lam_spark.runtime.context import Run, StageResult, stage
from lam_spark.sequences.freshness import EVENTS, NUMBERING, PERIODS, periods_of, require_examples
from lam_spark.sequences.time_range import micros
from lam_spark.sequences.vocabulary import numbering
from lam_spark.storage.settings import session_settings
from lam_spark.training_data.columns import (
    answerable,
    collect_queries,
    customers,
    cut_off,
    event_columns,
    layout_of,
)
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import Block, Packer, prepare

# In the note of a snapshot: how the ledger was asked (`consent.eligibility.Asked`).
ASKED = "asked"
# Windows with queries are read by fine-tuning, both kinds by pre-training.
QUERIED, PLAIN = "queried", "plain"
_BLOCKS_PER_FRAME = 64


@stage
def run(run: Run) -> StageResult:
    """Publish `training_blocks` (grain: a block; columns of `Layout.columns`, block_kind, `Layout.packing_digest`).

    Raises:
        ConsentError: nobody is eligible for training, or events of the tables belong to somebody else now.
        DataQualityError: nothing to train on, or tables made for other dates (`sequences.dates.require_examples`).
    """
    config = run.config
    events = require_examples(run)
    vocabulary = run.tables.read("vocabulary")
    layout = layout_of(config, vocabulary)
    allowed = eligible(run, config.consent.training_purpose)
    question = asked_now(run, config.consent.training_purpose)
    note = {
        ASKED: dataclasses.asdict(question),
        PERIODS: periods_of(config),
        EVENTS: events,
        NUMBERING: numbering(vocabulary, layout.ids_in_use),
    }
    sequences = run.tables.read("sequences").join(allowed, "customer_key", "left_semi")
    if sequences.isEmpty():
        raise DataQualityError(
            "there is no sequence of a customer who is eligible for training: nothing to learn from"
        )
    trainable = F.col("split").isin(TRAIN, VALIDATION, STRADDLING)
    examples = run.tables.read("examples").where(trainable).join(allowed, "customer_key", "left_semi")
    cut = run.keep(cut_off(sequences, layout))
    forgotten = answerable(examples, cut, held=False).count()
    queries = collect_queries(answerable(examples, cut), layout)
    rows = (
        sequences.select(
            "customer_key", F.hash("customer_key").alias("customer_index"), *event_columns(layout)
        )
        .join(queries.drop("query_ids"), "customer_key", "left")
        # By a hash of the key: by the key itself, Spark finds the join's partitions good enough, and merges them.
        .repartition(config.snapshot.files, F.xxhash64("customer_key"))
        .sortWithinPartitions("customer_key")
        .drop("customer_key")
    )
    # Sequences may have been made for a later as_of.
    blocks = _pack(rows, layout, min(config.micros(config.split.test_start), micros(run.as_of)))
    blocks = blocks.withColumn("packing", F.lit(layout.packing_digest))
    # A file of so many blocks is one row group (Parquet begins another one after 128 MB). petastorm reads a file's
    # footer anew for each of its groups: in files that grew with the data, that would take the square of them.
    shape = {"spark.sql.files.maxRecordsPerFile": str(config.snapshot.blocks_per_file)}
    with session_settings(run.spark, shape):
        written = run.tables.overwrite(blocks, "training_blocks", partition_by=["block_kind"], note=note)
    used = [
        F.sum(F.size(F.filter(name, lambda slot: slot > 0))) for name in ("window", "is_new", "query_window")
    ]
    totals = run.tables.read("training_blocks").agg(*used).first()
    assert totals is not None  # an aggregate without keys gives one row
    filled, fresh, asked = (int(value) for value in totals)
    share = filled / (written * layout.block_events)
    return StageResult(
        says=f"{written:,} blocks of {layout.block_events}, {share:.0%} filled: {fresh:,} events, {asked:,} queries",
        counts={
            "blocks": written,
            "slots_filled": filled,
            "events_new": fresh,
            "queries": asked,
            "queries_before_kept_events": forgotten,
        },
        facts={"filled_share": round(share, 4)},
    )


def block_schema(layout: Layout) -> str:
    """Spark DDL of a block."""
    kinds = {"int32": "INT", "int64": "BIGINT", "float32": "FLOAT"}
    columns = [f"{name} ARRAY<{kinds[dtype]}>" for name, (dtype, _) in layout.columns.items()]
    return ", ".join([*columns, "block_kind STRING"])


def _pack(rows: DataFrame, layout: Layout, before: int) -> DataFrame:
    def blocks_of(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        packers = {QUERIED: Packer(layout), PLAIN: Packer(layout)}

        def packed() -> Iterator[tuple[Block, str]]:
            for batch in batches:
                for customer in customers(layout, batch, before):
                    prepared = prepare(layout, customer)
                    for window in prepared.windows:
                        kind = QUERIED if len(window.queries) else PLAIN
                        for block in packers[kind].add_window(prepared, window, with_loss=True):
                            yield block, kind
            for kind, packer in packers.items():
                for block in packer.flush():
                    yield block, kind

        stream = packed()
        while held := list(itertools.islice(stream, _BLOCKS_PER_FRAME)):
            yield _as_frame(held)

    return rows.mapInPandas(blocks_of, block_schema(layout))


def _as_frame(blocks: list[tuple[Block, str]]) -> pd.DataFrame:
    columns: dict[str, list[object]] = {name: [block[name] for block, _ in blocks] for name in blocks[0][0]}
    return pd.DataFrame({**columns, "block_kind": [kind for _, kind in blocks]})
