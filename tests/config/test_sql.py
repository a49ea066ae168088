"""SQL in the configuration reads inputs and views: no Java, no program, no path, no change."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from lam_spark.config import Config, Section
from lam_spark.config.load import load_config
from lam_spark.config.sql import checked_expression, checked_query
from lam_spark.errors import ConfigError
from tests.config.shipped import SHIPPED, Write, error_text

CALLS = [
    "SELECT reflect('java.lang.System', 'getenv', 'LAM_SPARK_SECRET') AS page FROM visits",
    "SELECT ReFlect /* a comment */ -- another\n ('java.lang.System', 'getenv', 'X')",
    "SELECT `java_method`('java.lang.System', 'getenv', 'X')",
    "SELECT system.builtin.try_reflect('java.lang.System', 'getenv', 'X')",
    "SELECT 'it''s', \"a \\\" quote\", reflect('a', 'b')",
    r"SELECT 'a \' quote', reflect('a', 'b'), ' and'",
    "SELECT r'a raw text\\', reflect('a', 'b')",
    "SELECT 1 /* a /* nested */ comment ' */, reflect('a', 'b')",
    "SELECT 1 -- a ' quote\n, reflect('a', 'b')",
    "SELECT IDENTIFIER('ref' || 'lect')('a', 'b')",
    "SELECT * FROM read_files('/etc/passwd', format => 'text')",
    "WITH a AS (SELECT 1) SELECT * FROM a WHERE EXISTS (SELECT reflect('a', 'b'))",
]
PATHS = [
    "SELECT * FROM text.`/etc/passwd`",
    "SELECT * FROM `CSV` . `passwd`",
    "SELECT * FROM visits, Parquet/* here */.`/data`",
    "SELECT * FROM visits JOIN delta.`s3://bucket/table` USING (id)",
    "SELECT * FROM (SELECT * FROM org.example.source.`/etc/passwd`)",
    "SELECT (SELECT max(value) FROM text.passwd) AS first",
]
STATEMENTS = [
    "INSERT INTO events SELECT 1",
    "/* a comment */ DROP TABLE events",
    "SET spark.sql.session.timeZone = Asia/Tokyo",
    "WITH a AS (SELECT 1) INSERT INTO events SELECT * FROM a",
    "WITH a AS (SELECT 1), b (x) AS (SELECT 2) UPDATE events SET x = 1",
    "FROM visits INSERT OVERWRITE events SELECT *",
    "SELECT TRANSFORM (a) USING 'cat /etc/passwd' AS (b) FROM visits",
    "SELECT 1 /* never closed",
    "",
]
HARMLESS = [
    "SELECT 'reflect(1), csv.`/x`, INSERT INTO' AS words, reflect, t.reflect FROM visits t -- reflect(",
    "SELECT transform(array(1), x -> x + 1), a.`Price/Unit` FROM a JOIN b USING (id)",
    "WITH a AS (SELECT 1 AS x), b(y) AS (SELECT 2) SELECT * FROM a, b",
    "WITH a AS (SELECT 1) (SELECT * FROM a) UNION ALL (SELECT * FROM a)",
    "SELECT EXTRACT(HOUR FROM json.day), trim(BOTH FROM text.name), substring(delta.x FROM 2) FROM visits",
    "FROM visits SELECT *",
    "VALUES (1), (2)",
    "(SELECT /*+ BROADCAST(a) */ 1)",
]


@pytest.mark.parametrize("sql", CALLS + PATHS + STATEMENTS)
def test_a_select_that_does_more_than_read_inputs_is_refused(sql: str) -> None:
    with pytest.raises(ValueError, match=r"^(expected|a comment)"):
        checked_query(sql)


@pytest.mark.parametrize("sql", HARMLESS)
def test_a_select_over_inputs_is_accepted_as_it_is(sql: str) -> None:
    assert checked_query(sql) == sql


@pytest.mark.parametrize("sql", ["amount > 0 AND reflect('a', 'b') = 'c'", "x IN (SELECT y FROM csv.`/x`)"])
def test_an_expression_is_checked_like_a_select(sql: str) -> None:
    with pytest.raises(ValueError, match="expected SQL over inputs and views"):
        checked_expression(sql)


def test_the_error_names_the_key(write_changed: Write) -> None:
    def call_java(content: dict[str, Any]) -> None:
        content["channels"]["mailing"]["rules"] = {"known": "reflect('java.lang.System', 'getenv', 'X') = ''"}

    assert error_text(write_changed(call_java)) == (
        "  - channels.mailing.rules.known: expected SQL over inputs and views, got a call of reflect: it is not allowed"
    )


def keys(section: type[Section], prefix: str = "") -> list[tuple[str, str]]:
    """Keys that hold text, and their descriptions; NAME stands for a name of the user's choice."""
    found = []
    for name, field in section.model_fields.items():
        key, parts = f"{prefix}{name}", [field.annotation]
        if get_origin(field.annotation) is dict:
            key, parts = f"{key}.NAME", [get_args(field.annotation)[1]]
        while parts:
            part: Any = parts.pop()
            if get_origin(part) in (Annotated, Union, types.UnionType):
                parts += [p for p in get_args(part) if p is not type(None)]
            elif isinstance(part, type) and issubclass(part, Section):
                found += keys(part, f"{key}.")
            elif part is str:
                found.append((key, field.description or ""))
    return found


@pytest.mark.parametrize(
    "key",
    [key for key, text in keys(Config) if re.search(r"\bSQL\b(?! settings)|SELECT|DDL", text)],
)
def test_every_key_that_holds_sql_is_checked(key: str) -> None:
    """By the description: a key with SQL says so."""
    value = "'SELECT reflect(1, 2)'" if key.split(".")[-1] != "columns" else "id INT DEFAULT reflect(1)"
    existing = {"inputs.NAME": "inputs.products", "channels.NAME": "channels.mailing"}
    existing |= {"targets.NAME": "targets.coupon_redemption", "fields.NAME": "fields.item"}
    path = key
    for generic, actual in existing.items():
        path = path.replace(generic, actual)
    path = path.replace("NAME", "mine")
    with pytest.raises(ConfigError, match="expected SQL over inputs and views, got a call of reflect"):
        load_config(SHIPPED, overrides=[f"{path}={value}"])


def test_the_descriptions_of_sql_keys_are_found() -> None:
    found = {key for key, text in keys(Config) if "SQL" in text or "SELECT" in text}
    assert {"views.NAME", "channels.NAME.rules.NAME", "targets.NAME.population", "scoring.proposals"} <= found
