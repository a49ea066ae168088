"""Names that fields may not have, because tables or selects use them."""

from __future__ import annotations

from lam_spark.storage.tables.registry import TABLES

# Columns other than fields that the selects of channels, link statements and proposals yield.
INPUT_COLUMNS = ("customer_id", "event_key", "id", "linked_at", "proposal_id", "description")

# Training blocks have the columns `event_FIELD` and `query_FIELD`.
_FIELD_PREFIXES = ("event_", "query_")

# Names that fields may not have, because a table has both columns. Training blocks add a prefix to fields.
RESERVED_COLUMNS = frozenset(INPUT_COLUMNS).union(
    *(spec.columns for spec in TABLES.values() if spec.holds_fields),
    (
        name.removeprefix(prefix)
        for name in TABLES["training_blocks"].columns
        for prefix in _FIELD_PREFIXES
        if name.startswith(prefix)
    ),
)
