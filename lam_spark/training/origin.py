"""What ties a model to where it was trained: facts of its card that whoever asks it holds against their workspace."""

from __future__ import annotations

from functools import reduce
from operator import or_

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.dataset.layout import Layout

# Names of the facts: `vocabulary_digest`, and the instant (ISO 8601) from which on the model has seen nothing.
VOCABULARY, TEST_START = "vocabulary_sha256", "test_start"


def vocabulary_digest(vocabulary: DataFrame, layout: Layout) -> str:
    """sha256 (hex) of the values that the layout's ids stand for, field by field.

    A vocabulary only grows: as long as it is the same one, so is the digest of a layout, whatever came since. Another
    one numbers the values otherwise, although fields and sizes may be the same. Cost: 64 bytes an id in one task.
    """
    sizes = zip(layout.categorical, layout.sizes, strict=True)
    in_use = reduce(or_, ((F.col("field") == name) & (F.col("token_id") < size) for name, size in sizes))
    entry = F.concat_ws("\0", "field", F.col("token_id").cast("string"), "value")
    entries = F.sort_array(F.collect_list(F.sha2(entry, 256)))
    row = vocabulary.where(in_use).agg(F.sha2(F.concat_ws("", entries), 256)).first()
    assert row is not None  # an aggregate without keys gives one row
    return str(row[0])
