"""Inputs and Spark settings: keys that fit the format, and no secret in the file."""

from __future__ import annotations

from typing import Any

import pytest

from lam_spark.config.load import load_config
from tests.config.shipped import Write, error_text

_REMEDY = (
    "the configuration is copied into the audit: set secrets.OPTION, such as secrets.password, to the name of the "
    "environment variable that holds it"
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
    ("options", "found"),
    [
        ({"url": "jdbc:x:y", "dbtable": "t", "password": "hush"}, "password"),
        ({"url": "jdbc:x:y", "dbtable": "t", "password": 123456}, "password"),
        ({"url": "jdbc:x:y", "dbtable": "t", "accessToken": "hush"}, "accessToken"),
        ({"url": "jdbc:sqlserver://x", "dbtable": "t", "accessKey": "hush"}, "accessKey"),
        ({"url": "jdbc:x:y?user=me&Password=hush", "dbtable": "t"}, "url (Password)"),
        ({"url": "jdbc:x://y:1/z;trustStorePassword=hush", "dbtable": "t"}, "url (trustStorePassword)"),
        ({"url": "jdbc:snowflake://x/?privateKey=hush", "dbtable": "t"}, "url (privateKey)"),
        ({"url": "jdbc:databricks://y:443;UID=token;PWD=hush", "dbtable": "t"}, "url (PWD)"),
        ({"url": "jdbc:mysql://me:hush@y:1/z", "dbtable": "t"}, "url (password)"),
        ({"url": "jdbc:oracle:thin:me/hush@//y:1/z", "dbtable": "t"}, "url (password)"),
    ],
)
def test_a_secret_in_the_options_is_an_error_that_does_not_show_it(
    write_changed: Write, options: dict[str, Any], found: str
) -> None:
    crm = {"format": "jdbc", "columns": "id BIGINT", "options": options}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert error_text(file) == f"  - inputs.crm: expected no secret in options, got {found}; {_REMEDY}"


def test_a_connection_string_inside_of_a_database_query_is_an_error(write_changed: Write) -> None:
    query = "SELECT * FROM dblink('host=h user=u password=hush', 'SELECT 1') t(a int)"
    crm = {"format": "jdbc", "columns": "a INT", "options": {"url": "jdbc:postgresql://x/y", "query": query}}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert error_text(file) == (
        "  - inputs.crm: expected no secret in options, got query (password); the configuration is copied into the "
        "audit: keep the connection in the database, as a foreign server"
    )


def test_a_column_of_a_database_query_may_be_named_token(write_changed: Write) -> None:
    query = "SELECT id FROM sessions WHERE token = other_token AND kind = 'web'"
    crm = {"format": "jdbc", "columns": "id INT", "options": {"url": "jdbc:postgresql://x/y", "query": query}}
    file = write_changed(lambda content: content["inputs"].update(crm=crm))
    assert load_config(file).inputs["crm"].options["query"] == query


@pytest.mark.parametrize(
    ("key", "value"),
    [("path", "wasbs://c@a.net/x?sv=1&sig=hush"), ("options", {"fs.s3a.secret.key": "hush"})],
)
def test_a_secret_of_a_file_input_belongs_under_spark_secrets(
    write_changed: Write, key: str, value: Any
) -> None:
    file = write_changed(lambda content: content["inputs"]["products"].update({key: value}))
    message = error_text(file)
    assert message.startswith("  - inputs.products: expected no secret in ")
    assert "name an environment variable under spark.secrets" in message
    assert "hush" not in message


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"api_key": "hush", "password": "hush"}, "api_key, password"),
        ({"source": {"url": "https://me:hush@host/x"}}, "source.url (password)"),
        ({"headers": ["Authorization: Bearer hush-hush-hush"]}, "headers (a key)"),
    ],
)
def test_a_secret_in_the_arguments_of_fetch_is_an_error(
    write_changed: Write, arguments: dict[str, Any], found: str
) -> None:
    fetch = {"function": "my.module:fetch", "arguments": arguments}
    file = write_changed(lambda content: content.update(fetch=fetch))
    assert error_text(file) == (
        f"  - fetch: expected no secret in arguments, got {found}; the configuration is copied into the audit: set "
        "secrets.ARGUMENT to the name of the environment variable that holds it"
    )


def test_an_argument_of_fetch_has_one_value(write_changed: Write) -> None:
    fetch = {"function": "my.module:fetch", "arguments": {"key": "a"}, "secrets": {"key": "KEY"}}
    file = write_changed(lambda content: content.update(fetch=fetch))
    assert error_text(file) == "  - fetch: expected each argument once, got key in arguments and secrets"


@pytest.mark.parametrize("key", ["fetch.secrets.key", "spark.secrets.key", "identity.secret_env"])
def test_a_secret_in_place_of_its_variable_is_not_shown(write_changed: Write, key: str) -> None:
    assert error_text(write_changed(lambda _: None), f"{key}=hush-hush") == (
        f"  - {key}: expected the name of an environment variable: letters, digits and _"
    )


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
    ("key", "value", "found"),
    [
        ("spark.hadoop.fs.s3a.secret.key", "hush", ""),
        ("spark.hadoop.fs.s3a.access.key", "hush", ""),
        ("spark.ssl.keyPassword", "hush", ""),
        ("fs.azure.account.key.mine.dfs", "hush", ""),
        ("a.token", "hush", ""),
        ("spark.driver.extraJavaOptions", "-Xss4m -Dx.trustStorePassword=hush", " (x.trustStorePassword)"),
        ("spark.executorEnv.AWS_SECRET_ACCESS_KEY", "hush", ""),
    ],
)
def test_a_secret_in_the_spark_settings_is_an_error(
    write_changed: Write, key: str, value: str, found: str
) -> None:
    file = write_changed(lambda content: content.update(spark={"settings": {key: value}}))
    assert error_text(file) == (
        f"  - spark: expected no secret in settings, got {key}{found}; the configuration is copied into the audit: set "
        "secrets.SETTING to the name of the environment variable that holds it, or set it in spark-defaults.conf"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (
            "spark.hadoop.fs.s3a.aws.credentials.provider",
            "com.amazonaws.auth.InstanceProfileCredentialsProvider",
        ),
        ("spark.hadoop.dfs.block.access.token.enable", True),
        ("spark.driver.extraJavaOptions", "-Xss4m -Duser.language=en"),
        ("spark.redaction.regex", "(?i)secret|password|token"),
        ("spark.hadoop.hadoop.security.credential.provider.path", "jceks://hdfs/user/me/keys.jceks"),
    ],
)
def test_a_setting_that_only_says_where_a_secret_is_may_stay(
    write_changed: Write, key: str, value: Any
) -> None:
    file = write_changed(lambda content: content.update(spark={"settings": {key: value}}))
    assert key in load_config(file).spark.settings


def test_variables_of_all_secrets_are_withheld_from_training_processes(write_changed: Write) -> None:
    def name_variables(content: dict[str, Any]) -> None:
        content["fetch"]["secrets"] = {"api_key": "SHOP_KEY"}
        content["spark"] = {"secrets": {"spark.hadoop.fs.s3a.secret.key": "STORE_KEY"}}

    variables = load_config(write_changed(name_variables)).secret_variables
    assert variables == {"LAM_SPARK_SECRET", "SHOP_KEY", "STORE_KEY"}
