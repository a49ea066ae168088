"""Section `model`: size and inputs of the transformer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lam_spark.config.base import Name, Section


class ModelConfig(Section):
    """Size of the transformer and its inputs."""

    d_model: int = Field(
        default=64, ge=8, description="width of the hidden states, a multiple of 2 x `n_heads`"
    )
    n_layers: int = Field(default=2, ge=1, description="transformer layers")
    n_heads: int = Field(default=4, ge=1, description="attention heads")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout probability in training")
    context_events: int = Field(default=512, ge=8, description="most events in the model's context")
    count_by: Name = Field(
        default="action", description="categorical field whose values the aggregates count"
    )
    window_days: tuple[int, ...] = Field(
        default=(28, 91, 365), description="windows of the aggregates, in days before the query"
    )
    numeric_bins: int = Field(
        default=8, ge=0, description="quantile bins per number and aggregate; 0: no bins"
    )
    half_life_days: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(3.0, 14.0, 60.0, 240.0),
        min_length=1,
        description="half-lives of the decayed counts that the predictions read, in days",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"expected d_model to be a multiple of 2 x n_heads ({2 * self.n_heads}), got {self.d_model}"
            )
        return self
