"""Sections `scoring` and `embeddings`: what the model computes for every eligible customer."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Name, Section
from lam_spark.config.sql import SqlQuery


class ScoringConfig(Section):
    """Proposals, and the target that scores them for every eligible customer."""

    target: Name = Field(description="binary target that ranks the proposals")
    proposals: SqlQuery = Field(
        description="SELECT over inputs and views that yields `proposal_id`, `description` and fields of the proposed "
        "event (no reference fields); `{as_of}` is the date"
    )
    max_proposals: int = Field(default=200, ge=1, description="most proposals; more are an error")
    alias: str = Field(
        default="champion", description="alias of the registered model version that scores; `train` sets it"
    )


class EmbeddingsConfig(Section):
    """Customer embeddings, which the stage `embed` makes on request.

    Embeddings are training data of other models, so by default they require the purpose of training. The purpose of
    contact does not imply it.
    """

    purpose: Name | None = Field(
        default=None, description="purpose that permits an embedding; null: `consent.training_purpose`"
    )
