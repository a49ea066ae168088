"""Section `words`: the nouns and the verb of the report."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Section


class WordsConfig(Section):
    """Words that the report uses."""

    customer: str = Field(default="customer", description="a customer")
    customers: str = Field(default="customers", description="several customers")
    example: str = Field(default="example", description="an example, such as a contact or a purchase")
    examples: str = Field(default="examples", description="several examples")
    outcome_verb: str = Field(
        default="reached the target", description="the outcome as a past-tense verb, such as `redeemed`"
    )
