"""Section `targets`: what the model predicts, and the baseline it is compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from lam_spark.config.base import Section, Text
from lam_spark.config.sql import SqlExpression, checked_expression


class TargetConfig(Section):
    """A target: what happens to a customer within a horizon after a query.

    A query is either an event that `population` selects (a proposal, for example), or, with `every_days`, a point in
    time at which the customer is active; such a query has no fields. The outcomes of a query are the customer's later
    events within the horizon that `outcome_filter` and `label` select. The label is

    - `binary`: whether there is an outcome (with `negate`: whether there is none),
    - `value`: the SQL aggregate `value` over the outcomes; not negative, 0 without outcomes,
    - `next`: which values of the categorical field `field` the outcomes have.

    The baseline is a simple score that the model is compared with.
    """

    kind: Literal["binary", "value", "next"] = Field(default="binary", description="kind of the label")
    description: str = Field(description="the target in plain words, for the report")
    population: SqlExpression | None = Field(
        default=None,
        description="SQL condition over `events`: events that are queries, asked when the event is known; "
        "contacts of the company are known when sent (`arrival_delay` 0); or `every_days`",
    )
    every_days: int | None = Field(
        default=None,
        ge=1,
        description="days between two queries of an active customer, counted from the start of each period of `split`; "
        "or `population`",
    )
    active: SqlExpression = Field(
        default="true",
        description="with `every_days`: SQL condition over the events that make a customer active",
    )
    active_days: int = Field(
        default=91,
        ge=1,
        description="with `every_days`: days for which such an event makes a customer active",
    )
    outcome_filter: SqlExpression = Field(
        description="SQL condition over `events`: events that may be outcomes"
    )
    label: SqlExpression = Field(
        default="true",
        description="SQL condition over `query` and `outcome`: outcomes that belong to the query",
    )
    negate: bool = Field(default=False, description="binary: the label is 1 if no outcome follows (a lapse)")
    value: SqlExpression = Field(
        default="", description="value: SQL aggregate over the outcomes, e.g. `sum(outcome.amount)`"
    )
    field: str = Field(default="", description="next: categorical field whose values are predicted")
    top_k: int = Field(
        default=64, ge=1, description="next: number of values that are predicted, the commonest of the field"
    )
    outcome_channels: tuple[str, ...] = Field(
        default=(),
        description="channels that show the outcomes: a label matures only when all of them are complete up to its "
        "`label_end`; none: those with an event in the year before `as_of` that matches `outcome_filter`",
    )
    horizon_days: Annotated[Text, AfterValidator(checked_expression)] = Field(
        description="days from the query in which outcomes count: a whole number from 1, or SQL over `query` "
        "(null drops the query)"
    )
    baseline_filter: SqlExpression = Field(
        default="false", description="SQL condition over `events`: earlier events that the baseline reads"
    )
    baseline: SqlExpression = Field(
        default="count(*)",
        description="SQL aggregate over those of the latest `sequences.max_events` (`count(*)`: over all of them); "
        "`as_of` is the time of the query; null ranks last",
    )
    baseline_name: str = Field(
        default="no baseline", description="the baseline in plain words, for the report"
    )
    weight: float = Field(default=1.0, gt=0, description="weight of the loss relative to the other targets")

    @property
    def fixed_horizon(self) -> int | None:
        """The horizon in days if it is a number; None if it is SQL."""
        try:
            return int(float(self.horizon_days))
        except ValueError:
            return None

    @field_validator("horizon_days")
    @classmethod
    def _whole_days(cls, value: str) -> str:
        try:
            days = float(value)
        except ValueError:
            return value  # an SQL expression: the stage `examples` checks its result per query
        if days < 1 or not days.is_integer():
            raise ValueError(f"expected a whole number of days from 1, got {value!r}")
        return value

    @model_validator(mode="after")
    def _queries_are_defined_once(self) -> TargetConfig:
        if (self.population is None) == (self.every_days is None):
            number = "neither" if self.population is None else "both"
            raise ValueError(f"expected either population or every_days, got {number}")
        for key in ("active", "active_days"):
            if self.every_days is None and self.differs_from_default(key):
                raise ValueError(f"{key} requires every_days, got population: remove {key}")
        return self

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> TargetConfig:
        for key, kind in (("value", "value"), ("field", "next")):
            if self.kind == kind and not getattr(self, key):
                raise ValueError(f"expected {key} for kind {kind}, got none")
            if self.kind != kind and getattr(self, key):
                raise ValueError(f"{key} is for kind {kind}, the kind here is {self.kind}: remove it")
        if self.kind != "next" and self.differs_from_default("top_k"):
            raise ValueError(f"top_k is for kind next, the kind here is {self.kind}: remove it")
        if self.negate and self.kind != "binary":
            raise ValueError(f"negate is for kind binary, the kind here is {self.kind}: remove it")
        return self
