"""Contact lists as CSV files."""

from __future__ import annotations

import shutil
from pathlib import Path

from pyspark.sql import DataFrame


def write_csv(rows: DataFrame, path: Path) -> None:
    """Write a DataFrame as one CSV file with a header (RFC 4180), by one task; a rename puts it in place."""
    draft = path.with_suffix(".draft")
    # RFC 4180 doubles a quote inside a quoted text; by default Spark escapes it with a backslash.
    writer = rows.coalesce(1).write.mode("overwrite").option("header", "true").option("escape", '"')
    writer.csv(str(draft))
    (part,) = draft.glob("part-*.csv")
    part.replace(path)
    shutil.rmtree(draft)
