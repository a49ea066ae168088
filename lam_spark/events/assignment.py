"""Assignment of accepted rows to customers: pseudonyms, links of ids at points in time, and late links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lam_spark.config import ChannelConfig, Config, LinkConfig
from lam_spark.events.deduplication import EVENT, UNRESOLVED, mark_duplicates, with_event_id
from lam_spark.events.known_at import delayed, event_known_at
from lam_spark.events.quarantine import RAW, REASON
from lam_spark.events.staging import TimeSpan
from lam_spark.identity.links import LINK_COLUMNS, assignment_at, assignments, changed_assignments
from lam_spark.identity.pseudonyms import CUSTOMER, Secret, register_ids, with_pseudonyms
from lam_spark.storage.dataframes import materialize, one_row, union_all
from lam_spark.storage.tables.store import Tables

# Columns of the table `unresolved`; the declared fields follow.
UNRESOLVED_COLUMNS = ["event_id", "id_key", "event_time", "source"]
_ASSIGNED_COLUMNS = ["customer_key", "event_id", "event_time", "known_at", "source", "id_key"]


@dataclass(frozen=True)
class Assigned:
    """New rows and new links with their customers; DataFrames over staging folders.

    Attributes:
        links: New links (grain: a link; `LINK_COLUMNS` and `source`); None if there are none.
        rows: Accepted rows of channels with `_status` and `_conflicting`; None if there are none.
        resolved_later: Rows of `unresolved` that have a customer now; None if no id changed its customer.
        reassigned: Events with another customer now, with none (`customer_key` null), or that are known at another
            instant; `_previous` is the customer before. None as above.
    """

    links: DataFrame | None
    rows: DataFrame | None
    resolved_later: DataFrame | None
    reassigned: DataFrame | None


@dataclass(frozen=True)
class _Published:
    """Tables of earlier runs; None where a table does not exist or is about to be rebuilt."""

    links: DataFrame | None
    events: DataFrame | None
    unresolved: DataFrame | None

    @classmethod
    def read(cls, tables: Tables, rebuild: bool) -> _Published:
        if rebuild:
            return cls(None, None, None)
        return cls(*(tables.read_if_exists(name) for name in ("links", "events", "unresolved")))

    @property
    def known_events(self) -> dict[str, DataFrame]:
        tables = {"events": self.events, "unresolved": self.unresolved}
        return {name: table for name, table in tables.items() if table is not None}


def assign_customers(
    tables: Tables,
    config: Config,
    staged: Mapping[str, DataFrame],
    span: TimeSpan,
    secret: Secret,
    staging: Path,
) -> Assigned:
    """Deduplicate the accepted rows and find their customers.

    Writes the table `identity` (append-only; a pseudonym alone reveals nothing); all else stays in staging.

    Args:
        tables: Tables of the workspace.
        config: Configuration of the data set.
        staged: Rows of each reader, from `stage_increments`.
        span: Time span of the accepted events.
        secret: Key of the pseudonyms.
        staging: Folder of this run.
    """
    accepted = {
        reader: rows.where(F.col(REASON).isNull()).drop(REASON, RAW) for reader, rows in staged.items()
    }
    links = [rows for reader, rows in accepted.items() if reader in config.identity.links]
    channels = {reader: rows for reader, rows in accepted.items() if reader in config.channels}
    _register(tables, config.channels, channels, links, secret)
    published = _Published.read(tables, config.ingest.rebuild)
    new_links = None
    if links:
        new_links = _new_links(tables, config.identity.links, links, published.links, staging)
    link_frames = [frame.select(*LINK_COLUMNS) for frame in (new_links, published.links) if frame is not None]
    rows = None
    if channels:
        all_links = union_all(link_frames) if link_frames else None
        rows = _assign_rows(tables, config, channels, all_links, published, span, staging)
    resolved_later, reassigned = _apply_links(new_links, published, config, staging)
    return Assigned(new_links, rows, resolved_later, reassigned)


def _register(
    tables: Tables,
    specs: Mapping[str, ChannelConfig],
    channels: Mapping[str, DataFrame],
    links: Sequence[DataFrame],
    secret: Secret,
) -> None:
    """Give pseudonyms to all ids of the accepted rows."""
    ids = [rows.select(F.lit(specs[name].id), F.col("customer_id")) for name, rows in channels.items()]
    for rows in links:
        ids += [rows.select("id_kind", "id"), rows.select(F.lit(CUSTOMER), F.col("customer_id"))]
    register_ids(tables, union_all(frame.toDF("id_kind", "raw_id") for frame in ids), secret)


def _new_links(
    tables: Tables,
    specs: Mapping[str, LinkConfig],
    staged: Sequence[DataFrame],
    published_links: DataFrame | None,
    staging: Path,
) -> DataFrame:
    """Links that are not in the table yet; grain: a link and the instant at which it is known."""
    statements = union_all(staged).withColumnRenamed("id_kind", "_kind")
    keyed = with_pseudonyms(tables, statements, F.col("_kind"), "id", "id_key")
    keyed = with_pseudonyms(tables, keyed, F.lit(CUSTOMER), "customer_id", "customer_key")
    keyed = keyed.withColumn("known_at", delayed("linked_at", specs))
    links = keyed.groupBy(*LINK_COLUMNS).agg(F.min("source").alias("source"))
    if published_links is not None:
        links = links.join(published_links, LINK_COLUMNS, "left_anti")
    return materialize(links, staging / "new_links")


def _assign_rows(
    tables: Tables,
    config: Config,
    channels: Mapping[str, DataFrame],
    links: DataFrame | None,
    published: _Published,
    span: TimeSpan,
    staging: Path,
) -> DataFrame:
    """Accepted rows with their customers; grain: an accepted row.

    Columns: `customer_key` (null if the id is unassigned), `event_id`, `event_time`, `known_at`, `source`, `id_key`
    (null for a customer's own id), the declared fields, `_status`, `_conflicting`.
    """
    known_events, fields = published.known_events, list(config.fields)
    by_customer_id = {name: rows for name, rows in channels.items() if config.channels[name].id == CUSTOMER}
    linked = {name: rows for name, rows in channels.items() if name not in by_customer_id}
    frames = []
    if by_customer_id:
        keyed = _with_keys(tables, config.channels, by_customer_id)
        rows = mark_duplicates(keyed, known_events, fields, span, staging / "own_ids")
        frames.append(
            rows.withColumns(
                {
                    "customer_key": F.col("id_key"),
                    "id_key": F.lit(None).cast("string"),
                    "known_at": event_known_at(config.channels),
                }
            )
        )
    if linked:
        keyed = materialize(_with_keys(tables, config.channels, linked), staging / "linked_ids")
        rows = mark_duplicates(keyed, known_events, fields, span, None)
        if links is not None:
            needed = links.join(keyed.select("id_key").distinct(), "id_key", "left_semi")
            rows = rows.join(assignments(needed, config.identity), "id_key", "left")
            frames.append(_with_customer(rows, config))
        else:
            no_customer = {
                "customer_key": F.lit(None).cast("string"),
                "known_at": F.lit(None).cast("timestamp"),
            }
            frames.append(rows.withColumns(no_customer))
    status = (
        F.when(F.col("_status").isNotNull(), F.col("_status"))
        .when(F.col("customer_key").isNull(), UNRESOLVED)
        .otherwise(EVENT)
    )
    columns: list[Column | str] = [*_ASSIGNED_COLUMNS, *fields, status.alias("_status"), "_conflicting"]
    return materialize(union_all(frame.select(*columns) for frame in frames), staging / "assigned")


def _with_customer(rows: DataFrame, config: Config) -> DataFrame:
    """Replace `_assignments` by `customer_key` (null if unassigned) and `known_at`."""
    entry = F.col("_entry")
    return (
        rows.withColumn("_entry", assignment_at(F.col("event_time"), config.identity))
        .withColumns(
            {
                "customer_key": entry["customer_key"],
                "known_at": event_known_at(config.channels, entry["known_at"]),
            }
        )
        .drop("_assignments", "_entry")
    )


def _with_keys(
    tables: Tables, specs: Mapping[str, ChannelConfig], channels: Mapping[str, DataFrame]
) -> DataFrame:
    """Rows of channels with `id_key` and `event_id` instead of raw ids."""
    rows = union_all(frame.withColumn("_kind", F.lit(specs[name].id)) for name, frame in channels.items())
    return with_event_id(with_pseudonyms(tables, rows, F.col("_kind"), "customer_id", "id_key").drop("_kind"))


def _apply_links(
    new_links: DataFrame | None,
    published: _Published,
    config: Config,
    staging: Path,
) -> tuple[DataFrame | None, DataFrame | None]:
    """What new links change in rows of earlier runs: `Assigned.resolved_later` and `Assigned.reassigned`.

    Cost: a scan of `unresolved`, and of those files of `events` that the changed ids may concern.
    """
    if new_links is None or not published.known_events:
        return None, None
    old_links = new_links.select(*LINK_COLUMNS).limit(0) if published.links is None else published.links
    changed = materialize(changed_assignments(old_links, new_links, config.identity), staging / "changed_ids")
    totals = one_row(
        changed.agg(
            F.count("*").alias("_ids"),
            F.unix_micros(F.min("_since")).alias("_since"),
            F.count_if(F.col("_since").isNull()).alias("_without_since"),
        )
    )
    if not totals["_ids"]:
        return None, None
    resolved_later = reassigned = None
    if published.unresolved is not None:
        rows = _with_customer(published.unresolved.join(changed, "id_key"), config)
        rows = rows.where(F.col("customer_key").isNotNull()).drop("_since")
        resolved_later = materialize(rows, staging / "resolved_later")
    if published.events is not None:
        events = published.events.where(F.col("id_key").isNotNull())
        if not totals["_without_since"]:
            events = events.where(f"event_time >= timestamp_micros({totals['_since']})")
        earlier = events.withColumnsRenamed({"customer_key": "_previous", "known_at": "_known_before"})
        rows = _with_customer(earlier.join(changed, "id_key"), config)
        is_same = F.col("customer_key").eqNullSafe(F.col("_previous")) & F.col("known_at").eqNullSafe(
            F.col("_known_before")
        )
        rows = rows.where(~is_same)
        columns = [*UNRESOLVED_COLUMNS, "customer_key", "known_at", "_previous", *config.fields]
        reassigned = materialize(rows.select(*columns), staging / "reassigned")
    return resolved_later, reassigned
