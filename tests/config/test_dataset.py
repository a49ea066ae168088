"""Checks across sections, reserved field names, and what is derived from the whole configuration."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from lam_spark.config.load import load_config
from lam_spark.storage.tables.reserved import RESERVED_COLUMNS
from tests.config.shipped import SHIPPED, Write, error_text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "scoring.target=coupon",
            "scoring.target 'coupon' is not declared: did you mean 'coupon_redemption'?",
        ),
        ("model.count_by=actoin", "model.count_by 'actoin' is not declared: did you mean 'action'?"),
        (
            "channels.mailing.grain=campains",
            "channels.mailing.grain 'campains' is not declared: did you mean 'campaigns'?",
        ),
        (
            "identity.links.login={grain: campains, select: SELECT 1}",
            "identity.links.login.grain 'campains' is not declared: did you mean 'campaigns'?",
        ),
        (
            "identity.links.mailing={grain: campaigns, select: SELECT 1}",
            "identity.links ['mailing'] have the name of a channel: rename them",
        ),
        (
            "channels.mailing.id=card",
            "channels ['mailing'] have ids of another kind than customer, but identity.links is empty: declare the "
            "links of these ids to customers",
        ),
        ("views.products=SELECT 1", "views ['products'] have the name of an input: rename them"),
        (
            "sequences.max_events=100",
            "expected sequences.max_events to be at least model.context_events (256), got 100",
        ),
        (
            "snapshot.files=1",
            "expected snapshot.files to be at least training.world_size (2), got 1: each process reads its own files",
        ),
    ],
)
def test_sections_that_contradict_each_other_are_an_error(override: str, message: str) -> None:
    assert error_text(SHIPPED, override) == f"  - {message}"


def test_only_a_binary_target_ranks_proposals() -> None:
    keys = "description: x, outcome_filter: 'true', horizon_days: '7', every_days: 7"
    target = f"{{{keys}, kind: value, value: sum(quantity)}}"
    assert error_text(SHIPPED, f"targets.more={target}", "scoring.target=more") == (
        "  - expected scoring.target to be of kind binary, 'more' is of kind value: only binary targets rank proposals"
    )


@pytest.mark.parametrize("name", ["query_kind", "label_kind", "event_amount", "event_item"])
def test_a_field_may_not_have_the_name_of_another_fields_block_column(
    write_changed: Write, name: str
) -> None:
    kinds = {"amount": "numeric", "item": "categorical", name: "numeric"}

    def add(content: dict[str, Any]) -> None:
        content["fields"].update({field: {"role": "what", "kind": kind} for field, kind in kinds.items()})

    assert error_text(write_changed(add)).startswith(f"  - fields ['{name}'] have reserved names: ")


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_a_field_may_not_have_the_name_of_a_table_column(name: str) -> None:
    assert error_text(SHIPPED, f"fields.{name}={{role: what, kind: numeric}}") == (
        f"  - fields ['{name}'] have reserved names: fields become columns of tables that have columns of these names. "
        f"Reserved are query_..., label_..., event_ with the name of another field, and "
        f"{', '.join(sorted(RESERVED_COLUMNS))}: rename the fields"
    )


def test_columns_of_examples_and_suffixes_of_block_columns_are_reserved() -> None:
    blocks = {"time", "window", "index", "row", "hour_of_week", "split"}  # query_time, query_window, ...
    examples = {"customer_key", "target", "query_id", "as_of", "label", "baseline_score"}
    selects = {"customer_id", "event_key", "proposal_id", "description"}
    assert blocks | examples | selects <= RESERVED_COLUMNS


@pytest.mark.parametrize(
    ("day", "utc"),
    [
        (dt.date(2017, 3, 12), "2017-03-12T05:00:00+00:00"),  # clocks go forward on this day, after midnight
        (dt.date(2017, 3, 13), "2017-03-13T04:00:00+00:00"),
        (dt.date(2017, 11, 5), "2017-11-05T04:00:00+00:00"),  # clocks go back on this day
        (dt.date(2017, 11, 6), "2017-11-06T05:00:00+00:00"),
    ],
)
def test_a_day_starts_at_local_midnight_across_clock_changes(day: dt.date, utc: str) -> None:
    config = load_config(SHIPPED)
    assert config.instant(day).isoformat() == utc
    assert config.instant(day).tzinfo is dt.UTC  # independent of the machine's time zone
    assert config.micros(day) == int(dt.datetime.fromisoformat(utc).timestamp() * 1e6)


def test_the_digest_depends_on_values_only() -> None:
    config = load_config(SHIPPED)
    assert load_config(SHIPPED, overrides=["training.world_size=2"]).digest() == config.digest()
    assert load_config(SHIPPED, overrides=["training.world_size=1"]).digest() != config.digest()


def test_the_environment_variables_of_secrets_are_known(write_changed: Write) -> None:
    crm = {
        "format": "jdbc",
        "options": {"url": "jdbc:postgresql://crm/crm", "dbtable": "people"},
        "secrets": {"password": "CRM_PASSWORD"},
        "columns": "person STRING",
    }
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert load_config(file).secret_variables == {"LAM_SPARK_SECRET", "CRM_PASSWORD"}


@pytest.mark.parametrize(("value", "bits"), [("0640", 0o640), ("'0660'", 0o660)])
def test_permissions_are_written_as_octal_digits(value: str, bits: int) -> None:
    """Without quotes, YAML reads them as an octal number."""
    config = load_config(SHIPPED, overrides=[f"files_mode={value}"])
    assert (config.file_permissions, load_config(SHIPPED).file_permissions) == (bits, 0o600)


@pytest.mark.parametrize("value", ["640", "0400", "0755", "'rw'", "true"])
def test_other_permissions_are_refused(write_changed: Write, value: str) -> None:
    message = error_text(write_changed(lambda _: None), f"files_mode={value}")
    assert message.startswith("  - files_mode: expected permission bits of a file such as 0600 or 0640")
