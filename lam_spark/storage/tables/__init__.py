"""Delta tables: what is declared about each, reading and writing them, their logs, publication and maintenance."""

from lam_spark.storage.tables.registry import RESERVED_COLUMNS, TABLES, TableSpec
from lam_spark.storage.tables.store import NOT_A_NUMBER, Tables

__all__ = ["NOT_A_NUMBER", "RESERVED_COLUMNS", "TABLES", "TableSpec", "Tables"]
