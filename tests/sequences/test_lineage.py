"""When the stored rows can be updated, and the reasons for a rebuild."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lam_spark.consent.guards import ConsentCheck
from lam_spark.errors import DataQualityError
from lam_spark.sequences import incremental
from lam_spark.sequences.lineage import SequencesLineage
from lam_spark.sequences.stage import build_sequences
from tests.sequences.nightly import AS_OF, MAX_EVENTS, NightlyShop, many, run_night

LINEAGE = SequencesLineage(
    definition={"time_zone": "c0ffee"},
    events_version=3,
    consent_check=ConsentCheck("model_training", 2, "2024-01-02T09:00:00+00:00"),
    value_counts_version=1,
    as_of=5,
    vocabulary_cutoff=4,
    first_event=0,
    last_event=9,
    top_ids={"action": 7},
)


def test_lineage_is_stored_as_plain_json() -> None:
    metadata = json.loads(json.dumps(LINEAGE.to_metadata()))
    assert metadata["format"] == 2
    assert SequencesLineage.from_metadata(metadata) == LINEAGE


def test_lineage_of_another_format_is_not_read() -> None:
    assert SequencesLineage.from_metadata(None) is None
    assert SequencesLineage.from_metadata(LINEAGE.to_metadata() | {"format": 0}) is None
    assert SequencesLineage.from_metadata({"as_of": 5}) is None


def test_all_customers_are_rebuilt_if_most_would_be(shop: NightlyShop) -> None:
    shop.add(*many("ada", 3))  # makes "buy" frequent enough for the vocabulary, which affects the anchor, too
    shop.state_both("ada", "opt_in")
    assert incremental._MAX_REBUILT_SHARE == 0.3
    assert run_night(shop).result.rebuild_reason == "2 customers have to be rebuilt or deleted"


@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        ("sequences", {"max_events": MAX_EVENTS + 1}, "the configuration has changed: sequences.max_events"),
        ("quality", {"max_staleness_days": 300}, None),
    ],
)
def test_only_relevant_changes_of_the_configuration_need_a_rebuild(
    shop: NightlyShop, section: str, change: dict[str, Any], reason: str | None
) -> None:
    ctx = shop.context(AS_OF)
    changed = getattr(ctx.config, section).model_copy(update=change)
    config = ctx.config.model_copy(update={section: changed})
    assert build_sequences(dataclasses.replace(ctx, config=config)).rebuild_reason == reason


def test_replaced_events_changed_rows_another_format_and_age_need_a_rebuild(
    spark: SparkSession, shop: NightlyShop
) -> None:
    def reason() -> str | None:
        return run_night(shop).result.rebuild_reason

    tables = shop.context(AS_OF).tables
    tables.overwrite(tables.read("events"), "events")
    assert reason() == "the events were replaced, or their change feed has a gap"
    tables.append(tables.read("sequences").withColumn("customer_key", F.lit("another")), "sequences")
    assert reason() == "the table's last commit does not record what it was built from"
    tables.touch_metadata("sequences", (tables.commit_metadata("sequences") or {}) | {"format": 0})
    assert reason() == "the table was built by another version of lam_spark"
    spark.sql(f"OPTIMIZE delta.`{tables.path('sequences')}`")
    assert reason() is None
    shop.night += 7
    assert reason() == "the table is more than 6 days old"


def test_readers_without_support_for_deletion_vectors_are_refused(shop: NightlyShop) -> None:
    tables = shop.tables
    with pytest.raises(DataQualityError, match="has deletion vectors"):
        tables.files("sequences", tables.version("sequences"))
