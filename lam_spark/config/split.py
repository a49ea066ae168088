"""Section `split`: the periods of training, validation and test."""

from __future__ import annotations

import datetime as dt

from pydantic import Field, model_validator

from lam_spark.config.base import Section


class SplitConfig(Section):
    """Periods of the queries.

    The horizon of a training example ends before `validation_start`, that of a validation example before `test_start`.
    Queries whose horizon ends after `as_of`, or after the day of the last event before it, are not used.
    The final model is refit on the training and validation periods.
    """

    train_start: dt.date = Field(description="first day of the training period")
    validation_start: dt.date = Field(
        description="first day of the validation period, which selects the number of epochs and calibrates"
    )
    test_start: dt.date = Field(description="first day of the test period, which measures the final model")

    @model_validator(mode="after")
    def _in_order(self) -> SplitConfig:
        if not self.train_start < self.validation_start < self.test_start:
            raise ValueError(
                "expected train_start < validation_start < test_start, "
                f"got {self.train_start}, {self.validation_start}, {self.test_start}"
            )
        return self
