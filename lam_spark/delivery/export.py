"""Contact lists as CSV files that a spreadsheet opens safely."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from lam_spark.storage.files import restrict

# Where a spreadsheet may see a formula: at the start of a text, and after characters at which some spreadsheets start
# a new cell even inside of a quoted text. White space and quotes before it are ignored by some.
_FORMULA = "(^|[;\\t\\r\\n])([\\s\"']*)([=+\\-@\\uFF1D\\uFF0B\\uFF0D\\uFF20])"
_LEADING_CONTROL = "^[\\t\\r\\n]"


def without_formulas(text: Column) -> Column:
    """A text in which a spreadsheet sees no formula: an apostrophe comes before what would begin one.

    The rule of OWASP against CSV injection: cells that begin with `=`, `+`, `-`, `@`, a tab or a line break, also after
    quotes and white space, and the same after a separator inside of the text.
    """
    marked = F.regexp_replace(text, _FORMULA, "$1'$2$3")
    return F.when(marked.rlike(_LEADING_CONTROL), F.concat(F.lit("'"), marked)).otherwise(marked)


def write_csv(rows: DataFrame, path: Path) -> str:
    """Write a DataFrame as one CSV file with a header (RFC 4180), by one task; a rename puts it in place.

    All values are quoted, and texts have no formulas (`without_formulas`).

    Returns:
        sha256 of the file (hex).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    texts = {
        field.name: without_formulas(F.col(field.name))
        for field in rows.schema
        if isinstance(field.dataType, StringType)
    }
    safe = rows.withColumns(texts) if texts else rows
    # RFC 4180 doubles a quote inside a quoted text; by default Spark escapes it with a backslash.
    writer = safe.coalesce(1).write.mode("overwrite").option("header", "true").option("escape", '"')
    # By default Spark also removes white space at both ends of a text.
    writer = writer.option("ignoreLeadingWhiteSpace", "false").option("ignoreTrailingWhiteSpace", "false")
    writer.option("quoteAll", "true").csv(str(draft))
    (part,) = draft.glob("part-*.csv")
    restrict(part)
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    part.replace(path)
    shutil.rmtree(draft)
    return digest
