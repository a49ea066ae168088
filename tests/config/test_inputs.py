"""Inputs and Spark settings: keys that fit the format, and no secret in the file."""

from __future__ import annotations

from typing import Any

import pytest

from lam_spark.config.load import load_config
from tests.config.shipped import Write, error_text

_NO_PASSWORD = (
    "expected no password in options, got one; the configuration is copied into the audit: set secrets.password to the "
    "name of the environment variable that holds it"
)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"options": {"url": "jdbc:x:y"}},
            "expected a jdbc input without path, with the options url and either dbtable or query; got path '' and "
            "options ['url']",
        ),
        (
            {"path": "x", "options": {"url": "jdbc:x:y", "query": "SELECT 1"}},
            "expected a jdbc input without path, with the options url and either dbtable or query; got path 'x' and "
            "options ['query', 'url']",
        ),
        ({"format": "csv"}, "expected a path for the format csv, got none"),
        (
            {"format": "csv", "path": "x.csv", "secrets": {"password": "CRM"}},
            "secrets are for format jdbc, the format here is csv: remove them, files are read with the permissions of "
            "the Spark session",
        ),
        (
            {"format": "csv", "path": "x.csv", "watermark": "id"},
            "watermark is for format jdbc, the format here is csv: remove it, new files and Delta versions are "
            "recognised without it",
        ),
    ],
)
def test_a_key_of_another_format_is_an_error(
    write_changed: Write, section: dict[str, Any], message: str
) -> None:
    crm = {"format": "jdbc", "columns": "id BIGINT", **section}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert error_text(file) == f"  - inputs.crm: {message}"


@pytest.mark.parametrize(
    "options",
    [
        {"url": "jdbc:x:y", "dbtable": "t", "password": "hush"},
        {"url": "jdbc:x:y", "dbtable": "t", "accessToken": "hush"},
        {"url": "jdbc:x:y?user=me&Password=hush", "dbtable": "t"},
        {"url": "jdbc:x://y:1/z;trustStorePassword=hush", "dbtable": "t"},
        {"url": "jdbc:databricks://y:443;UID=token;PWD=hush", "dbtable": "t"},
        {"url": "jdbc:mysql://me:hush@y:1/z", "dbtable": "t"},
        {"url": "jdbc:oracle:thin:me/hush@//y:1/z", "dbtable": "t"},
    ],
)
def test_a_password_in_the_options_is_an_error_that_does_not_show_it(
    write_changed: Write, options: dict[str, str]
) -> None:
    crm = {"format": "jdbc", "columns": "id BIGINT", "options": options}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert error_text(file) == f"  - inputs.crm: {_NO_PASSWORD}"


@pytest.mark.parametrize(
    "url",
    [
        "jdbc:postgresql://db.shop:5432/crm?user=me@shop&ssl=true",
        "jdbc:oracle:thin:@//db.shop:1521/crm",
        "jdbc:mysql://me@db.shop:3306/crm",
    ],
)
def test_the_address_of_a_database_is_not_taken_for_a_password(write_changed: Write, url: str) -> None:
    crm = {"format": "jdbc", "columns": "id BIGINT", "options": {"url": url, "dbtable": "t"}}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert load_config(file).inputs["crm"].options["url"] == url


@pytest.mark.parametrize(
    "key",
    ["spark.hadoop.fs.s3a.secret.key", "spark.ssl.keyPassword", "fs.azure.account.key.mine.dfs", "a.token"],
)
def test_a_secret_in_the_spark_settings_is_an_error(write_changed: Write, key: str) -> None:
    file = write_changed(lambda content: content.update(spark={"settings": {key: "hush"}}))
    assert error_text(file) == (
        f"  - spark: expected no secret in settings, got {key}; the configuration is copied into the audit: pass it to "
        "spark-submit or set it in spark-defaults.conf"
    )
