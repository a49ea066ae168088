"""The training snapshot: eligible customers, before the test period, and equal when it is recomputed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError, DataQualityError
from lam_spark.runtime.context import RunContext
from lam_spark.storage.time import sql_literal
from lam_spark.training.preparation import require_snapshot, specification
from lam_spark.training.spec import TrainingSpec
from lam_spark.training_data.columns import collect_queries, customers, event_columns, layout_of
from lam_spark.training_data.layout import Layout
from lam_spark.training_data.packing import prepare
from lam_spark.training_data.stage import SnapshotResult, build_snapshot
from tests.support.shop import context_builder, key_of
from tests.support.tables import Prepared


def blocks(ctx: RunContext) -> list[str]:
    """Rows of the snapshot in a fixed order."""
    return sorted(repr(tuple(row)) for row in ctx.tables.read("training_blocks").collect())


def snapshot_result(prepared: Prepared) -> SnapshotResult:
    result = prepared.results["snapshot"]
    assert isinstance(result, SnapshotResult)
    return result


def of_trained_customers(prepared: Prepared, frame: DataFrame) -> DataFrame:
    """Rows of customers who agreed to training."""
    keys = [key_of(raw) for raw in prepared.data.training]
    return frame.where(F.col("customer_key").isin(keys))


def test_it_holds_the_events_of_eligible_customers_before_the_test_period(prepared: Prepared) -> None:
    tables, config = prepared.ctx.tables, prepared.ctx.config
    test_start = config.instant(config.periods.test_start)
    events = of_trained_customers(prepared, tables.read("events"))
    expected = events.where(F.col("event_time") < F.expr(sql_literal(test_start))).count()
    assert snapshot_result(prepared).events_new == expected
    assert expected < events.count()  # some events are left out
    assert expected < tables.read("events").where(f"event_time < {sql_literal(test_start)}").count()
    latest = tables.read("training_blocks").agg(
        F.max(F.array_max("known_at")), F.max(F.array_max("query_time"))
    )
    (row,) = latest.collect()
    assert 0 < row[0] < config.micros(config.periods.test_start)
    assert 0 < row[1] < config.micros(config.periods.test_start)


def test_it_holds_the_examples_before_the_test_period(prepared: Prepared) -> None:
    tables = prepared.ctx.tables
    examples = tables.read("examples")
    assert of_trained_customers(prepared, examples).count() == examples.count()
    trainable = examples.where("split != 'test'")
    responses = trainable.where("target = 'response'")
    table = tables.read("training_blocks")

    def labels_of(target: str) -> DataFrame:
        return table.select(F.explode(f"label_{target}").alias("label")).where("NOT isnan(label)")

    labels = labels_of("response")
    assert responses.count() == labels.count()
    assert labels.where("label = 1").count() == responses.where("label = 1").count() > 0
    regular = trainable.where("target != 'response'")
    shared = regular.select("query_id").distinct().count()  # three targets share their queries
    assert regular.count() == 3 * shared
    assert snapshot_result(prepared).queries == responses.count() + shared
    for target in ("spend", "items"):
        values = 4 if target == "items" else 1  # the four categories
        assert labels_of(target).count() == values * trainable.where(F.col("target") == target).count()
    splits = table.select(F.explode("query_split").alias("s")).where("s > 0").distinct().collect()
    assert {row["s"] for row in splits} == {1, 2, 3}


def test_a_rerun_gives_the_same_blocks(prepared: Prepared) -> None:
    before = blocks(prepared.ctx)
    ctx = context_builder(prepared.ctx.spark, prepared.data.root)(prepared.data.config())
    result = build_snapshot(ctx)
    assert result == snapshot_result(prepared)
    assert blocks(prepared.ctx) == before
    assert len(before) == result.blocks


def test_the_message_and_the_counts(prepared: Prepared) -> None:
    result = SnapshotResult(10, 64, 480, 400, 1_234, 5)
    assert result.message == "10 blocks of 64, 75% filled: 400 events, 1,234 queries"
    assert result.counts == {
        "blocks": 10,
        "slots_filled": 480,
        "events_new": 400,
        "queries": 1_234,
        "queries_without_complete_history": 5,
    }


def test_a_query_does_not_see_an_event_at_its_own_instant(prepared: Prepared) -> None:
    tables = prepared.ctx.tables
    layout = layout_of(prepared.ctx.config, tables.read("vocabulary"))
    queries = collect_queries(tables.read("examples").where("target = 'response'"), layout)
    rows = tables.read("sequences").select("customer_key", *event_columns(layout))
    joined = rows.join(queries, "customer_key").orderBy("customer_key").limit(20).toPandas()
    own_events = 0
    for customer in customers(layout, joined):
        times, query_times = customer.events["known_at"], customer.queries["query_time"]
        for window in prepare(layout, customer).windows:
            for query, visible in zip(window.queries, window.visible_events, strict=True):
                assert np.all(times[:visible] < query_times[query])
                assert np.all(times[visible:] >= query_times[query])
                own_events += int(query_times[query] in times[visible:])
    assert own_events == sum(len(ids) for ids in joined["query_ids"])  # each query is itself an event


def test_the_number_of_files_is_the_configured_one(spark: SparkSession, prepared: Prepared) -> None:
    partitions = int(spark.conf.get("spark.sql.shuffle.partitions") or 0)
    config = prepared.data.config(f"snapshot.files={partitions}")
    ctx = context_builder(spark, prepared.data.root)(config)
    build_snapshot(ctx)
    version = ctx.tables.version("training_blocks")
    queried = ctx.tables.files("training_blocks", version, "block_kind = 'queried'")
    assert len(queried) == partitions


def test_files_do_not_grow_with_the_data(spark: SparkSession, prepared: Prepared) -> None:
    """A training process holds the one row group of a file in memory."""
    config = prepared.data.config("snapshot.blocks_per_file=7")
    ctx = context_builder(spark, prepared.data.root)(config)
    result = build_snapshot(ctx)
    assert result == snapshot_result(prepared)
    files = ctx.tables.files("training_blocks", ctx.tables.version("training_blocks"))
    footers = [pq.ParquetFile(unquote(urlparse(url).path)).metadata for url in files]
    assert max(footer.num_rows for footer in footers) == 7
    assert {footer.num_row_groups for footer in footers} == {1}
    assert sum(footer.num_rows for footer in footers) == result.blocks


def training_spec(ctx: RunContext, folder: Path, layout: Layout) -> TrainingSpec:
    return specification(
        ctx.tables,
        ctx.cache,
        ctx.config,
        require_snapshot(ctx.tables, ctx.cache, ctx.config, ctx.started_at),
        folder=folder,
        layout=layout,
        value_embeddings_digest="",
        run_id=ctx.run_id,
        at=ctx.started_at,
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [("model.window_days=[29, 91, 365]", "model.window_days"), ("fields.item.role=who", "fields.item.role")],
)
def test_training_refuses_a_snapshot_that_was_packed_for_another_layout(
    prepared: Prepared, tmp_path: Path, change: str, key: str
) -> None:
    """Even where all columns have the same lengths: their content would be misread."""
    build = context_builder(prepared.ctx.spark, prepared.data.root)
    vocabulary = prepared.ctx.tables.read("vocabulary")
    same = build(prepared.data.config())
    spec = training_spec(same, tmp_path, layout_of(same.config, vocabulary))
    assert spec.all_urls
    assert spec.withholds("LAM_SPARK_SECRET")
    assert spec.withholds("MLFLOW_TRACKING_TOKEN")
    assert not spec.withholds("PATH")
    other = build(prepared.data.config(change))
    with pytest.raises(DataQualityError, match=rf"differs in {key}: run the stage 'snapshot' again"):
        training_spec(other, tmp_path, layout_of(other.config, vocabulary))


def test_the_snapshot_needs_sequences(make_context: Callable[..., RunContext]) -> None:
    with pytest.raises(ConfigError, match="run the stage 'sequences' first"):
        build_snapshot(make_context())


def test_rows_are_plain_values(prepared: Prepared) -> None:
    stored: dict[str, Any] = snapshot_result(prepared).to_json()
    assert SnapshotResult.from_json(stored) == snapshot_result(prepared)
