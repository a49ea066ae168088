"""New raw rows of a reader, mapped and judged once, into a folder that nothing but this run reads."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import DataQualityError
from lam_spark.events.mapping import RAW, REASON, judged_links, map_channel
from lam_spark.run import Run
from lam_spark.sources.readers import Delivery, Inputs

MALFORMED_REASON = "line does not parse under the declared columns"


def stage_delivery(run: Run, inputs: Inputs, new: Delivery, folder: Path) -> int:
    """Map what is new for one reader into `folder`; returns its raw rows, malformed lines included.

    Grain of the folder: a raw row. Columns: those of `map_channel` (of `judged_links` for a link statement).

    Raises:
        ConfigError: an input, a select or a rule is wrong.
        DataQualityError: a reader's first delivery without rows, or a select that multiplies or drops rows.
    """
    section = "channels" if new.reader in run.config.channels else "identity.links"
    grain = inputs.only(new, folder.with_name(f"{new.reader}.landed")) if new.parts else None
    rows, malformed = grain.count() if grain else (0, 0)
    if grain is None or (new.is_first and not rows + malformed):
        path = run.config.inputs[new.input].path or "a table"
        raise DataQualityError(
            f"{section}.{new.reader}: its input {new.input!r} ({path}) has no rows. An empty first delivery "
            "is refused: it is more often a wrong path than a silent channel"
        )
    if section == "channels":
        mapped = map_channel(run, inputs, new.reader)
    else:
        mapped = judged_links(inputs, new.reader, run.config, run.started_at)
    mapped.write.mode("overwrite").parquet(str(folder))
    mapped_rows = run.spark.read.parquet(str(folder)).count()
    if mapped_rows != rows:
        raise DataQualityError(
            f"{section}.{new.reader}.select gave {mapped_rows:,} rows for {rows:,} rows of its grain "
            f"{new.input!r}: a join multiplies or drops rows. Aggregate the other side to one row a key, "
            "and use LEFT JOIN"
        )
    if grain.malformed is not None and malformed:
        _malformed_like(mapped, grain.malformed, new.reader).write.mode("append").parquet(str(folder))
    run.journal.event(
        "staged",
        reader=new.reader,
        parts=len(new.parts),
        rows=rows,
        malformed=malformed,
        undeclared_columns=list(grain.undeclared),
    )
    return rows + malformed


def _malformed_like(mapped: DataFrame, malformed: DataFrame, reader: str) -> DataFrame:
    """Lines that did not parse, as refused rows with the columns of the mapped ones."""
    given = {
        "source": F.lit(reader),
        REASON: F.lit(MALFORMED_REASON),
        RAW: F.make_valid_utf8(RAW),
    }
    return malformed.select(
        *(given.get(name, F.lit(None).cast(kind)).alias(name) for name, kind in mapped.dtypes)
    )


def count_refused(staged: DataFrame) -> dict[str, dict[str, int]]:
    """Refused rows by source and reason (as many as there are rules)."""
    refused: dict[str, dict[str, int]] = {}
    counted = staged.where(F.col(REASON).isNotNull()).groupBy("source", REASON).count()
    for row in counted.orderBy("source", REASON).toLocalIterator():
        refused.setdefault(row["source"], {})[row[REASON]] = row["count"]
    return refused
