"""Baselines of `benchmarks/scale/sequences.py`: the same work as users of DuckDB and polars would write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CATEGORICAL = ("action", "item", "place")
NUMERIC = ("amount", "seconds")
MAX_EVENTS = 8192
CORES = 2


def duckdb_build(folder: Path) -> Callable[[Path], None]:
    """Return a function that writes the sequences of `folder` as Parquet."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {CORES}; SET TimeZone = 'UTC'")
    channels = f"read_parquet('{folder}/channel_*.parquet')"
    joins = " ".join(
        f"LEFT JOIN (SELECT value, token_id FROM vocabulary WHERE field = '{name}') AS {name}_ids "
        f"ON e.{name} = {name}_ids.value"
        for name in CATEGORICAL
    )
    ids = ", ".join(
        f"CASE WHEN e.{name} IS NULL THEN 2 ELSE coalesce({name}_ids.token_id, 1) END AS {name}"
        for name in CATEGORICAL
    )
    numbers = ", ".join(f"{name}::FLOAT AS {name}" for name in NUMERIC)
    fields = ("known_at", "event_time", *CATEGORICAL, *NUMERIC)
    packed = ", ".join(f"{name} := {name}" for name in (*fields[:2], "event_order", *fields[2:]))
    arrays = ", ".join(f"[entry.{name} FOR entry IN entries] AS {name}" for name in fields)
    statement = f"""
        COPY (
            WITH vocabulary AS (FROM '{folder}/vocabulary.parquet'),
            encoded AS (
                SELECT e.customer_key, e.known_at, e.event_time, e.event_order, {ids}, {numbers}
                FROM {channels} AS e
                SEMI JOIN '{folder}/allowed.parquet' AS allowed USING (customer_key) {joins}
            ),
            customers AS (
                SELECT customer_key, count(*) AS events_seen,
                       list_sort(list(struct_pack({packed})))[-{MAX_EVENTS}:] AS entries
                FROM encoded GROUP BY customer_key
            )
            SELECT customer_key, events_seen, {arrays} FROM customers
        ) TO '{{target}}' (FORMAT parquet, COMPRESSION zstd)
    """

    def build(target: Path) -> None:
        connection.execute(statement.format(target=target))

    return build


def polars_build(folder: Path) -> Callable[[Path], None]:
    """Return a function that writes the sequences of `folder` as Parquet."""
    import polars as pl

    def build(target: Path) -> None:
        vocabulary = pl.read_parquet(folder / "vocabulary.parquet")
        allowed = pl.scan_parquet(folder / "allowed.parquet")
        events = pl.scan_parquet(folder / "channel_*.parquet").join(allowed, on="customer_key", how="semi")
        for name in CATEGORICAL:
            ids = vocabulary.filter(pl.col("field") == name).select(
                pl.col("value").alias(name), pl.col("token_id").alias(f"{name}_id")
            )
            known = pl.when(pl.col(name).is_null()).then(2).otherwise(pl.col(f"{name}_id").fill_null(1))
            events = (
                events.join(ids.lazy(), on=name, how="left")
                .with_columns(known.cast(pl.Int32).alias(name))
                .drop(f"{name}_id")
            )
        fields = ("known_at", "event_time", *CATEGORICAL, *NUMERIC)
        (
            events.with_columns(pl.col(NUMERIC).cast(pl.Float32))
            .sort("customer_key", "known_at", "event_time", "event_order")
            .group_by("customer_key", maintain_order=True)
            .agg(pl.len().alias("events_seen"), *(pl.col(name).tail(MAX_EVENTS) for name in fields))
            .collect()
            .write_parquet(target, compression="zstd")
        )

    return build
