"""How a table is declared; the declarations are in `registry.py`. Imports nothing of the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TableSpec:
    """Declaration of a table.

    Attributes:
        writer: Stage that writes it; named in errors.
        grain: What one row is.
        key: Columns that identify a row.
        columns: Fixed columns, name -> (Spark type, meaning).
        configured_columns: Which further columns follow from the configuration; empty if none.
        customer_column: Column that identifies a customer, None where rows belong to no single customer.
        holds_fields: Whether declared fields become columns of this table, so that its fixed names are reserved.
        stats_columns: Columns whose minimum and maximum go into the transaction log. Never a column that
            identifies a customer: statistics outlive the rows that an erasure removes.
        change_data_feed: Whether Delta keeps a change data feed, which a later stage reads.
        deletion_vectors: Whether a change marks old rows as deleted instead of rewriting their files. Only
            Delta can read such a table (`Tables.files` refuses it), and deleted rows stay in the files until
            REORG TABLE ... APPLY (PURGE) and VACUUM: an erasure has to run both.
    """

    writer: str
    grain: str
    key: tuple[str, ...]
    columns: Mapping[str, tuple[str, str]]
    configured_columns: str = ""
    customer_column: str | None = None
    holds_fields: bool = False
    stats_columns: tuple[str, ...] = field(default=())
    change_data_feed: bool = False
    deletion_vectors: bool = False
