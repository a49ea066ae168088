"""Section `fields`: the declared fields of events."""

from __future__ import annotations

from pydantic import Field, model_validator

from lam_spark.config.base import Kind, Role, Section
from lam_spark.config.sql import SqlQuery


class ValueEmbeddingsConfig(Section):
    """Pre-computed embeddings of a categorical field's values: features of an image, a sound or a text."""

    select: SqlQuery = Field(
        description="SELECT that yields `value` and `vector` (array of `dim` numbers), one row per value"
    )
    dim: int = Field(ge=1, le=4096, description="length of a vector")


class FieldConfig(Section):
    """A declared field of an event.

    `categorical` values become tokens, `numeric` values remain numbers. `reference` values are stored with the events,
    for example to match a label with its proposal, and are no input of the model. The last known value of a field with
    the role `who` is an input of every query.
    """

    role: Role = Field(
        description="4W1H role; `who` values hold until the next one, the other roles are documentation"
    )
    kind: Kind = Field(description="how the field is stored and modelled")
    min_count: int = Field(
        default=5,
        ge=1,
        description="categorical: events that a value needs to enter the vocabulary, which it never leaves",
    )
    max_values: int = Field(
        default=50_000,
        ge=1,
        description="categorical: only this many of the commonest values enter the vocabulary",
    )
    min: float | None = Field(
        default=None, description="numeric: smallest value; rows with a smaller one are quarantined"
    )
    max: float | None = Field(
        default=None, description="numeric: largest value; rows with a larger one are quarantined"
    )
    values: tuple[str, ...] = Field(
        default=(),
        description="categorical, reference: allowed values, other rows are quarantined; empty: all",
    )
    value_embeddings: ValueEmbeddingsConfig | None = Field(
        default=None, description="categorical: pre-computed embeddings of the values"
    )

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> FieldConfig:
        if self.kind != "categorical" and self.value_embeddings is not None:
            raise ValueError(
                f"value_embeddings is for categorical fields, this one is {self.kind}: remove it"
            )
        if self.kind == "numeric" and self.values:
            raise ValueError(
                "values is for categorical and reference fields, this one is numeric: use min and max"
            )
        if self.kind != "numeric" and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max are for numeric fields, this one is {self.kind}: remove them")
        for key in ("min_count", "max_values"):
            if self.kind != "categorical" and self.differs_from_default(key):
                raise ValueError(f"{key} is for categorical fields, this one is {self.kind}: remove it")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"expected min to be at most max, got min {self.min} and max {self.max}")
        return self
