"""Stage `ingest`: every channel's raw rows become events, duplicates or quarantined rows; counts balance.

Rows are mapped once into a staging folder, counted, and published only if the gates hold. A run that dies
leaves the last good `events`; its staging is swept by the next one.

Cost: one pass over the inputs, one shuffle by `event_id` for exact deduplication. Nothing but counts by
source and reason comes to the driver.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.config import Config
from lam_spark.errors import DataQualityError
from lam_spark.events.mapping import REASON, map_channel, row_reason
from lam_spark.run import Run, StageResult
from lam_spark.sources.identity import fitting_secret, resolve
from lam_spark.sources.readers import Inputs

MALFORMED_REASON = "line does not parse under the declared columns"


def run(run: Run) -> StageResult:
    """Publish `events` (grain: an event) and `quarantine` (grain: a refused raw row).

    Raises:
        ConfigError: an input or a select is wrong.
        DataQualityError: a channel without rows, a select that multiplies or drops rows, or more refused
            rows than `quality.max_quarantine_share`; nothing is published.
    """
    fitting_secret(run)  # before the work, not after it
    staging = run.config.workspace / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        inputs = Inputs(run.spark, run.config)
        rows_in = {channel: _stage(run, inputs, channel, staging) for channel in run.config.channels}
        staged = run.spark.read.parquet(*(str(staging / channel) for channel in run.config.channels))
        refused = _count_refused(staged)
        _hold_gates(run.config, rows_in, refused)
        quarantined = run.tables.overwrite(_quarantine(run, staged), "quarantine")
        run.tables.overwrite(_events(run, staged), "events")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return _balance(run, rows_in, refused, quarantined)


def _stage(run: Run, inputs: Inputs, channel: str, staging: Path) -> int:
    """Map one channel into staging; returns its raw rows, malformed lines included."""
    config, spec = run.config, run.config.channels[channel]
    grain = inputs[spec.grain]
    raw_rows = grain.rows.count()
    if raw_rows == 0:
        raise DataQualityError(
            f"channels.{channel}: its input {spec.grain!r} ({config.inputs[spec.grain].path}) has no rows. "
            "An empty delivery is refused: publishing it would erase the channel"
        )
    mapped = map_channel(inputs, config, channel).withColumns(
        {
            "source": F.lit(channel),
            REASON: row_reason(config, run.started_at),
            "raw": F.lit(None).cast("string"),
        }
    )
    target = str(staging / channel)
    mapped.write.mode("overwrite").parquet(target)
    mapped_rows = run.spark.read.parquet(target).count()
    if mapped_rows != raw_rows:
        raise DataQualityError(
            f"channels.{channel}.select gave {mapped_rows:,} rows for {raw_rows:,} rows of its grain "
            f"{spec.grain!r}: a join multiplies or drops rows. Aggregate the other side to one row a key, "
            "and use LEFT JOIN"
        )
    malformed_rows = 0
    if grain.malformed is not None:
        bad = grain.malformed.withColumns({"source": F.lit(channel), REASON: F.lit(MALFORMED_REASON)})
        malformed_rows = grain.malformed.count()
        if malformed_rows:
            columns = [
                f"CAST(NULL AS {kind}) AS {name}"
                for name, kind in mapped.dtypes
                if name not in ("source", REASON, "raw")
            ]
            bad.selectExpr(*columns, "source", REASON, "raw").write.mode("append").parquet(target)
    run.journal.event("channel staged", channel=channel, rows=raw_rows, malformed=malformed_rows)
    return raw_rows + malformed_rows


def _count_refused(staged: DataFrame) -> dict[str, dict[str, int]]:
    """Refused rows by source and reason (as many as there are rules)."""
    refused: dict[str, dict[str, int]] = {}
    counted = staged.where(F.col(REASON).isNotNull()).groupBy("source", REASON).count()
    for row in counted.orderBy("source", REASON).toLocalIterator():
        refused.setdefault(row["source"], {})[row[REASON]] = row["count"]
    return refused


def _hold_gates(config: Config, rows_in: dict[str, int], refused: dict[str, dict[str, int]]) -> None:
    limit = config.quality.max_quarantine_share
    for channel, total in rows_in.items():
        bad = sum(refused.get(channel, {}).values())
        if bad > limit * total:
            reasons = "; ".join(f"{reason}: {count:,}" for reason, count in refused[channel].items())
            raise DataQualityError(
                f"channels.{channel}: {bad:,} of {total:,} rows ({bad / total:.1%}) were refused, the limit "
                f"is {limit:.1%} ({reasons}). Nothing was published; mend the source or raise "
                "quality.max_quarantine_share"
            )


def _quarantine(run: Run, staged: DataFrame) -> DataFrame:
    """Refused rows: the raw line where it did not parse, else the mapped row without its customer id."""
    kept = [c for c in staged.columns if c not in ("customer_id", "source", REASON, "raw")]
    return staged.where(F.col(REASON).isNotNull()).select(
        "source",
        REASON,
        F.coalesce("raw", F.to_json(F.struct(*kept))).alias("raw"),
        F.lit(run.run_id).alias("run_id"),
    )


def _events(run: Run, staged: DataFrame) -> DataFrame:
    """Accepted rows with pseudonyms, each event once.

    `event_id` hashes source, pseudonym and the channel's own key: no raw id can be guessed from it.
    """
    accepted = staged.where(F.col(REASON).isNull()).drop(REASON, "raw")
    keyed = resolve(run, accepted)
    identified = keyed.withColumn(
        "event_id",
        F.substring(F.sha2(F.concat_ws("\x1f", "source", "customer_key", "event_key"), 256), 1, 32),
    )
    return identified.dropDuplicates(["event_id"]).select(
        "customer_key",
        "event_id",
        "event_time",
        "source",
        *run.config.fields,
        F.lit(run.started_at).cast("timestamp").alias("ingested_at"),
    )


def _balance(
    run: Run, rows_in: dict[str, int], refused: dict[str, dict[str, int]], quarantined: int
) -> StageResult:
    """Count what was published, a source at a time; what is neither event nor refused was a duplicate."""
    stored = {
        row["source"]: row["count"]
        for row in run.tables.read("events").groupBy("source").count().toLocalIterator()
    }
    sources = {}
    for channel, total in rows_in.items():
        bad = sum(refused.get(channel, {}).values())
        events = stored.get(channel, 0)
        sources[channel] = {
            "rows_in": total,
            "events": events,
            "duplicates": total - bad - events,
            "quarantined": bad,
        }
    counts = {key: sum(source[key] for source in sources.values()) for key in next(iter(sources.values()))}
    if quarantined != counts["quarantined"] or counts["duplicates"] < 0:
        raise DataQualityError(
            f"the counts of this run do not balance: {counts}, {quarantined} in quarantine"
        )
    return StageResult(
        says=(
            f"{counts['rows_in']:,} raw rows: {counts['events']:,} events, "
            f"{counts['duplicates']:,} duplicates, {counts['quarantined']:,} quarantined"
        ),
        counts=counts,
        facts={"sources": sources, "refused": refused},
    )
