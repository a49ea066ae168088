"""Refused rows: their reason, and their values without the customer's id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.events.rules import SELECTED, Rules, first_broken
from lam_spark.storage.dataframes import union_all

REASON = "reason"
RAW = "raw"
MALFORMED_REASON = "line does not parse under the declared columns"


def with_reason(rows: DataFrame, rules: Rules, selected: Sequence[str], source: str) -> DataFrame:
    """Apply the rules to mapped rows.

    Adds `source`, `reason` (the first broken rule; null: accepted) and `raw` (JSON of the selected values without
    `customer_id`, of refused rows only); drops the struct of selected values.

    Args:
        rows: Mapped rows with the struct `SELECTED`.
        rules: Rules, the first to check first.
        selected: Columns of the select.
        source: Channel or link statement.
    """
    values = [F.col(f"{SELECTED}.{name}").alias(name) for name in selected if name != "customer_id"]
    # Bytes that are not UTF-8 cannot be written as text; the valid part stays readable.
    raw = F.make_valid_utf8(F.to_json(F.struct(*values)))
    return (
        rows.withColumn(REASON, first_broken(rules))
        .withColumn(RAW, F.when(F.col(REASON).isNotNull(), raw))
        .withColumn("source", F.lit(source))
        .drop(SELECTED)
    )


def malformed_rows(mapped: DataFrame, malformed: DataFrame, source: str) -> DataFrame:
    """Malformed lines as refused rows with the columns of `mapped`.

    Args:
        mapped: Mapped rows of the same source.
        malformed: Lines, one column `raw`.
        source: Channel or link statement.
    """
    values = {
        "source": F.lit(source),
        REASON: F.lit(MALFORMED_REASON),
        RAW: F.make_valid_utf8(RAW),
    }
    return malformed.select(
        *(values.get(name, F.lit(None).cast(kind)).alias(name) for name, kind in mapped.dtypes)
    )


def quarantine_rows(staged: Iterable[DataFrame], run_id: str) -> DataFrame:
    """Refused rows of all sources, with the columns of the table `quarantine`."""
    rows = union_all(frame.select("source", REASON, RAW) for frame in staged)
    return rows.where(F.col(REASON).isNotNull()).withColumn("run_id", F.lit(run_id))
