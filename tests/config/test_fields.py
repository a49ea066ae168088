"""Fields: keys that fit the kind, and fields with the role `who`."""

from __future__ import annotations

import pytest

from lam_spark.config.load import load_config
from lam_spark.training_data.columns import layout_with
from lam_spark.training_data.layout import Layout, Target
from tests.config.shipped import SHIPPED, error_text


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "kind: numeric, min_count: 2",
            "min_count is for categorical fields, this one is numeric: remove it",
        ),
        (
            "kind: reference, max_values: 9",
            "max_values is for categorical fields, this one is reference: remove it",
        ),
        (
            "kind: numeric, value_embeddings: {select: SELECT 1, dim: 2}",
            "value_embeddings is for categorical fields, this one is numeric: remove it",
        ),
        (
            "kind: numeric, values: [a]",
            "values is for categorical and reference fields, this one is numeric: use min and max",
        ),
        (
            "kind: categorical, min: 1",
            "min and max are for numeric fields, this one is categorical: remove them",
        ),
        ("kind: numeric, min: 2, max: 1", "expected min to be at most max, got min 2.0 and max 1.0"),
    ],
)
def test_a_key_of_another_kind_is_an_error(field: str, message: str) -> None:
    assert error_text(SHIPPED, f"fields.more={{role: what, {field}}}") == f"  - fields.more: {message}"


def test_no_field_overwrites_a_column_of_a_training_block() -> None:
    config = load_config(SHIPPED)
    fields = (*config.categorical, *config.numeric)
    sizes = (4,) * len(config.categorical)
    layout = Layout(config.categorical, sizes, config.numeric, "action", (), (), 8, 4, (Target("t"),))
    without_fields = Layout((), (), (), "action", (), (), 8, 4, (Target("t"),))
    assert len(layout.columns) == len(without_fields.columns) + 2 * len(fields)


def test_modelled_fields_of_the_role_who_hold_until_the_next_value() -> None:
    config = load_config(SHIPPED)
    sizes = dict.fromkeys(config.categorical, 9)
    assert layout_with(config, sizes).who_fields == (
        *("age", "income", "home_ownership", "marital_status"),
        *("household_size", "household_comp", "kids_count"),
    )
    more = (
        *("fields.visits={role: who, kind: numeric}", "fields.card={role: who, kind: reference}"),
        "fields.age={role: what, kind: categorical}",
    )
    who = layout_with(load_config(SHIPPED, overrides=more), sizes).who_fields
    assert who[0] == "income"
    assert who[-1] == "visits"
