"""The training snapshot: consented, before the test period, and the same when it is made again."""

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

from lam_spark.errors import ConfigError, ModelError
from lam_spark.identity.pseudonyms import keyed_pseudonym
from lam_spark.runtime.context import Run, sql_literal
from lam_spark.training.stage import specification
from lam_spark.training_data import stage as snapshot
from lam_spark.training_data.columns import collect_queries, customers, event_columns, layout_of
from lam_spark.training_data.packing import prepare
from tests.support.shop import SECRET, run_builder
from tests.support.tables import Prepared


def blocks(run: Run) -> list[tuple[Any, ...]]:
    """The rows of the snapshot in an order of their own."""
    return sorted(repr(tuple(row)) for row in run.tables.read("training_blocks").collect())


def trained_on(prepared: Prepared, frame: DataFrame) -> DataFrame:
    """Rows of customers who agreed to training."""
    keys = [keyed_pseudonym(SECRET.encode(), raw) for raw in prepared.data.training]
    return frame.where(F.col("customer_key").isin(keys))


def test_it_holds_the_consented_events_before_the_test_period_and_no_other(prepared: Prepared) -> None:
    run = prepared.run
    test_start = run.config.instant(run.config.split.test_start)
    events = trained_on(prepared, run.tables.read("events"))
    wanted = events.where(F.col("event_time") < F.expr(sql_literal(test_start))).count()
    counts = prepared.results["snapshot"].counts
    assert counts["events_new"] == wanted
    assert wanted < events.count()  # there is something to leave out
    assert wanted < run.tables.read("events").where(f"event_time < {sql_literal(test_start)}").count()
    cut = run.config.micros(run.config.split.test_start)
    latest = run.tables.read("training_blocks").agg(
        F.max(F.array_max("event_time")), F.max(F.array_max("query_time"))
    )
    (row,) = latest.collect()
    assert 0 < row[0] < cut
    assert 0 < row[1] < cut


def test_it_asks_the_matured_examples_and_no_other(prepared: Prepared) -> None:
    run = prepared.run
    examples = run.tables.read("examples")
    assert trained_on(prepared, examples).count() == examples.count()
    asked = examples.where("split != 'test' AND target = 'response'")
    positives = asked.where("label = 1").count()
    table = run.tables.read("training_blocks")
    labels = table.select(F.explode("label_response").alias("label")).where("NOT isnan(label)")
    assert asked.count() == labels.count()
    every = examples.where("split != 'test'")
    regular = every.where("target != 'response'")
    shared = regular.select("query_id").distinct().count()  # three targets ask at once
    assert regular.count() == 3 * shared
    assert prepared.results["snapshot"].counts["queries"] == asked.count() + shared
    for target in ("spend", "items"):
        told = table.select(F.explode(f"label_{target}").alias("label")).where("NOT isnan(label)").count()
        values = 4 if target == "items" else 1  # the four categories
        assert told == values * every.where(F.col("target") == target).count()
    assert labels.where("label = 1").count() == positives > 0
    splits = table.select(F.explode("query_split").alias("s")).where("s > 0").groupBy("s").count().collect()
    assert {row["s"] for row in splits} == {1, 2, 3}


def test_made_again_it_is_the_same(prepared: Prepared) -> None:
    before = blocks(prepared.run)
    again = snapshot.run(run_builder(prepared.run.spark, prepared.data.root)(prepared.data.config()))
    assert again.counts == prepared.results["snapshot"].counts
    assert blocks(prepared.run) == before
    assert len(before) == again.counts["blocks"]


def test_a_query_does_not_see_an_event_of_its_own_instant(prepared: Prepared) -> None:
    run = prepared.run
    layout = layout_of(run.config, run.tables.read("vocabulary"))
    examples = run.tables.read("examples").where("target = 'response'")
    queries = collect_queries(examples, layout)
    rows = run.tables.read("sequences").select("customer_key", *event_columns(layout))
    together = rows.join(queries, "customer_key").orderBy("customer_key").limit(20).toPandas()
    seen = 0
    for customer in customers(layout, together):
        times, asked = customer.events["event_time"], customer.queries["query_time"]
        for window in prepare(layout, customer).windows:
            for query, upto in zip(window.queries, window.visible_events, strict=True):
                assert np.all(times[:upto] < asked[query])
                assert np.all(times[upto:] >= asked[query])
                seen += int(asked[query] in times[upto:])
    assert seen == sum(len(ids) for ids in together["query_ids"])  # each query is itself an event


def test_there_are_as_many_files_as_asked_for(spark: SparkSession, prepared: Prepared) -> None:
    partitions = int(spark.conf.get("spark.sql.shuffle.partitions") or 0)
    config = prepared.data.config(f"snapshot.files={partitions}")
    run = run_builder(spark, prepared.data.root)(config)
    snapshot.run(run)
    version = run.tables.version("training_blocks")
    queried = run.tables.files("training_blocks", version, "block_kind = 'queried'")
    assert len(queried) == partitions


def test_no_file_grows_with_the_data(spark: SparkSession, prepared: Prepared) -> None:
    """A rank holds a file's one row group at once."""
    few = prepared.data.config("snapshot.blocks_per_file=7")
    run = run_builder(spark, prepared.data.root)(few)
    counts = snapshot.run(run).counts
    assert counts == prepared.results["snapshot"].counts
    files = run.tables.files("training_blocks", run.tables.version("training_blocks"))
    footers = [pq.ParquetFile(unquote(urlparse(url).path)).metadata for url in files]
    assert max(footer.num_rows for footer in footers) == 7
    assert {footer.num_row_groups for footer in footers} == {1}
    assert sum(footer.num_rows for footer in footers) == counts["blocks"]


@pytest.mark.parametrize("change", ["model.window_days=[29, 91, 365]", "fields.item.role=who"])
def test_training_refuses_a_snapshot_that_was_packed_otherwise(
    prepared: Prepared, tmp_path: Path, change: str
) -> None:
    """Even where all columns are as long: what is in them would be read as something else."""
    build = run_builder(prepared.run.spark, prepared.data.root)
    vocabulary = prepared.run.tables.read("vocabulary")
    same = build(prepared.data.config())
    spec = specification(same, tmp_path, layout_of(same.config, vocabulary), "")
    assert spec.all_urls
    assert spec.withholds("LAM_SPARK_SECRET")
    assert spec.withholds("MLFLOW_TRACKING_TOKEN")
    assert not spec.withholds("PATH")
    other = build(prepared.data.config(change))
    with pytest.raises(ModelError, match="was packed for other fields"):
        specification(other, tmp_path, layout_of(other.config, vocabulary), "")


def test_the_snapshot_needs_sequences(make_run: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="run the stage 'sequences' first"):
        snapshot.run(make_run())
