"""Section `consent`: purposes by the names of the ledger."""

from __future__ import annotations

import pytest

from lam_spark.config.load import load_config
from tests.config.shipped import SHIPPED, error_text


def test_a_name_of_the_ledger_means_one_or_several_purposes_or_none() -> None:
    purposes = "{Calls: direct_marketing, all: [model_training, direct_marketing], 7: null}"
    config = load_config(SHIPPED, overrides=[f"consent.purposes={purposes}"])
    assert config.consent.purposes == {
        "Calls": ("direct_marketing",),
        "all": ("model_training", "direct_marketing"),
        "7": (),
    }


@pytest.mark.parametrize(
    ("purposes", "message"),
    [
        (
            "{'*': null}",
            "consent.purposes: '*' stands for all purposes: expected the purposes that it means, got null",
        ),
        (
            "{Calls: null, 'calls ': null}",
            "consent.purposes: 'Calls' and 'calls ' are the same name: remove one",
        ),
        (
            "{Calls: marketing}",
            "consent.purposes maps 'Calls' to 'marketing', which no stage asks for: expected ",
        ),
        (
            "{Direct_Marketing: null}",
            "consent.purposes maps 'Direct_Marketing', which is 'direct_marketing' already, to something else",
        ),
    ],
)
def test_purposes_that_would_be_ignored_are_refused(purposes: str, message: str) -> None:
    assert f"  - {message}" in error_text(SHIPPED, f"consent.purposes={purposes}")


def test_the_purpose_of_embeddings_may_be_mapped() -> None:
    overrides = ["embeddings.purpose=research", "consent.purposes={science: research}"]
    assert load_config(SHIPPED, overrides=overrides).purposes == (
        "direct_marketing",
        "model_training",
        "research",
    )
