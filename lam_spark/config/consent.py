"""Section `consent`: the source of the consent ledger, what its statements mean, and how old it may be."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from lam_spark.config.base import Name, Section, Text
from lam_spark.config.channels import ClockConfig
from lam_spark.config.sql import SqlQuery

# Names that a ledger uses for all purposes at once.
_WILDCARDS = frozenset(["*", "all", "any"])


def comparable_name(text: str) -> str:
    """A name of a purpose or state without case, width of letters and surrounding white space."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _as_names(value: Any) -> Any:
    """One purpose as a list, null as the empty list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


class ConsentConfig(Section):
    """Source of the consent ledger. A customer without an effective opt-in for a purpose is not eligible for it.

    An opt-in counts only if it is in effect and later than every withdrawal, in `effective_at` and in `recorded_at`.
    A withdrawal counts from the moment it is recorded. Any state other than opt_in is a withdrawal.

    Names of purposes and states are compared without case, width of letters and surrounding white space.
    """

    select: SqlQuery = Field(
        description="SELECT that yields `customer_id, purpose, state, effective_at, recorded_at, source`; `state` is "
        "opt_in or opt_out. A source with one time leaves `recorded_at` out"
    )
    kind: Literal["history", "state"] = Field(
        default="history",
        description="`history`: the source only grows, a statement that disappears stops the run; `state`: the source "
        "holds what is valid now, a consent that it no longer states ends",
    )
    clock: ClockConfig | None = Field(
        default=None, description="clock of local times in the ledger; null: times are UTC or name their zone"
    )
    purposes: dict[Text, Annotated[tuple[Name, ...], BeforeValidator(_as_names)]] = Field(
        default_factory=dict,
        description="the ledger's name of a purpose -> one or more of the purposes below; null: known and not used "
        "here. A name that is not listed stops the run",
    )
    training_purpose: Name = Field(
        default="model_training", description="purpose that permits training on a customer's events"
    )
    contact_purpose: Name = Field(
        default="direct_marketing", description="purpose that permits scoring and listing a customer"
    )
    max_shrink_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of its statements that the source may lose from one refresh to the next; with kind "
        "state also of the consents in force",
    )
    accept_loss: int = Field(
        default=0,
        ge=0,
        description="statements (kind state: consents in force) that the source may have lost although the rules "
        "above forbid it",
    )
    erased_ids: str | None = Field(
        default=None,
        description="text file with a pseudonym (`customer_key`) a line: customers whose statements were erased on "
        "purpose",
    )
    max_new_unmatched: int | None = Field(
        default=None,
        ge=0,
        description="most customers who opted out and have no event that a refresh may add; null: no limit",
    )
    max_age_hours: float = Field(
        default=36, gt=0, description="a stage without the secret stops if the last refresh is older"
    )
    max_lag_minutes: float = Field(
        default=60,
        ge=0,
        description="a stage without the secret stops if the source changed since the last refresh and that is older",
    )

    @field_validator("purposes")
    @classmethod
    def _names_are_distinct(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        by_name: dict[str, str] = {}
        for name, mapped in value.items():
            comparable = comparable_name(name)
            if comparable in by_name:
                raise ValueError(f"{by_name[comparable]!r} and {name!r} are the same name: remove one")
            if comparable in _WILDCARDS and not mapped:
                raise ValueError(
                    f"{name!r} stands for all purposes: expected the purposes that it means, got null. A withdrawal "
                    "for all purposes must not be ignored"
                )
            by_name[comparable] = name
        return value
