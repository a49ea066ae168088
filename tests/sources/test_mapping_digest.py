"""Which changes of the configuration change the mapping of a reader's rows, and which do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.sources.mapping_digest import lookups_behind, mapping_digest

SHIPPED = Path(__file__).parents[2] / "conf" / "complete_journey.yaml"
BASE = load_config(SHIPPED).model_dump(mode="json") | {
    "views": {"recent": "SELECT * FROM dated", "dated": "SELECT day FROM days", "other": "SELECT 2 AS day"},
    "inputs": {
        "calls": {"format": "csv", "path": "a.csv", "columns": "id BIGINT"},
        "crm": {
            "format": "jdbc",
            "columns": "id BIGINT",
            "options": {"url": "jdbc:postgresql://a/b", "query": "SELECT * FROM c"},
            "watermark": "id",
        },
        "days": {"format": "csv", "path": "days.csv", "columns": "day INT"},
        "names": {"format": "csv", "path": "names.csv", "columns": "id BIGINT"},
    },
    "channels": {
        "calls": {"grain": "calls", "select": "SELECT * FROM calls LEFT JOIN recent USING (day)"},
        "crm": {"grain": "crm", "select": "SELECT * FROM crm JOIN names USING (id)"},
    },
}


def digests(*keys: str, value: Any) -> tuple[str, str]:
    """Digests of both channels, with one value of the configuration replaced."""
    config = Config.model_validate(BASE).model_dump(mode="json")
    node = config
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    changed = Config.model_validate(config)
    return mapping_digest(changed, "calls"), mapping_digest(changed, "crm")


BEFORE = digests("name", value="any")


@pytest.mark.parametrize(
    ("keys", "value", "changed"),
    [
        (("channels", "calls", "select"), "SELECT 1 FROM calls", (True, False)),
        (("channels", "calls", "rules"), {"short": "id < 3"}, (True, False)),
        (("inputs", "calls", "columns"), "id STRING", (True, False)),
        (("inputs", "calls", "options"), {"sep": ";"}, (True, False)),
        (("views", "recent"), "SELECT 3 AS day", (True, False)),
        (("views", "dated"), "SELECT 3 AS day", (True, False)),
        (("views", "other"), "SELECT 3 AS day", (False, False)),
        (("inputs", "crm", "options", "query"), "SELECT * FROM d", (False, True)),
        (("inputs", "crm", "watermark"), "changed_at", (False, True)),
        (("inputs", "crm", "options", "url"), "jdbc:postgresql://elsewhere/b", (False, False)),
        (("inputs", "crm", "options", "fetchsize"), "7", (False, False)),
        (("inputs", "calls", "path"), "b.csv", (False, False)),
        (("inputs", "days", "columns"), "day BIGINT", (True, False)),
        (("inputs", "names", "options"), {"encoding": "UTF-16"}, (False, True)),
        (("inputs", "names", "path"), "other.csv", (False, False)),
        (("quality", "max_quarantine_share"), 0.5, (False, False)),
        (("quality", "earliest"), "1990-01-01", (True, True)),
    ],
)
def test_a_mapping_changes_only_with_what_decides_its_rows(
    keys: tuple[str, ...], value: Any, changed: tuple[bool, bool]
) -> None:
    now = digests(*keys, value=value)
    assert tuple(a != b for a, b in zip(now, BEFORE, strict=True)) == changed


def test_a_look_up_is_an_input_that_a_select_reads_other_than_as_its_own_new_rows() -> None:
    config = Config.model_validate(BASE)
    assert lookups_behind(config, "calls") == ["days"]  # through two views
    assert lookups_behind(config, "crm") == ["names"]
    # A view of the grain is complete, while the grain itself is the new rows.
    of_grain = BASE | {"views": BASE["views"] | {"recent": "SELECT day, count(*) FROM calls GROUP BY day"}}
    assert lookups_behind(Config.model_validate(of_grain), "calls") == ["calls"]
