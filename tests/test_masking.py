"""Secrets in texts of other libraries are masked; the rest of the text stays as it is."""

from __future__ import annotations

import pytest

from lam_spark.errors import ConfigError, first_line, without_values
from lam_spark.masking import is_secret_name, masked, masked_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "jdbc:postgresql://h/d?user=me&password=hush&ssl=true",
            "jdbc:postgresql://h/d?user=me&password=***&ssl=true",
        ),
        ("jdbc:mysql://me:hush@host:1/d failed", "jdbc:mysql://me:***@host:1/d failed"),
        ("jdbc:oracle:thin:me/hush@//y:1/z", "jdbc:oracle:thin:me/***@//y:1/z"),
        ("connect with password='two words' to host", "connect with password=*** to host"),
        ('{"private_key": "hush", "user": "me"}', '{"private_key": ***, "user": "me"}'),
        ("Password: hush", "Password: ***"),
        ("-Djavax.net.ssl.trustStorePassword=hush -Xss4m", "-Djavax.net.ssl.trustStorePassword=*** -Xss4m"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key *** is unknown"),
        ("Authorization: Bearer abcdefgh.12345678", "Authorization: Bearer ***"),
        ("https://a.net/x?sv=1&sig=abc%3D&se=2", "https://a.net/x?sv=1&sig=***&se=2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "***"),
    ],
)
def test_a_secret_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "expected one of name, time_zone, got 'tokens'",
        "a column named token cannot be resolved; did you mean token_id?",
        "jdbc:postgresql://db.shop:5432/crm?user=me@shop&ssl=true",
        "inputs.crm.secrets.password: expected the environment variable CRM_PASSWORD, it is not set",
        "use_access_token=true, token_limit=5",
        "spark.hadoop.fs.s3a.aws.credentials.provider=com.example.Provider",
    ],
)
def test_a_text_without_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_values_of_variables_that_are_named_like_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_PASSWORD", "correct horse battery")
    monkeypatch.setenv("CRM_ADDRESS", "db.shop.example")
    assert (
        masked("login at db.shop.example with correct horse battery") == "login at db.shop.example with ***"
    )


def test_the_working_folder_of_the_shell_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/ada/lam_spark")
    monkeypatch.setenv("DB_PWD", "correct horse battery")
    assert masked("/home/ada/lam_spark/out: correct horse battery") == "/home/ada/lam_spark/out: ***"


def test_texts_of_other_libraries_are_masked_where_they_are_taken_over() -> None:
    error = RuntimeError("cannot open jdbc:x://me:hush@host/d\nat a.b.c")
    assert first_line(error) == "cannot open jdbc:x://me:***@host/d"
    assert without_values(ConfigError(f"inputs.crm: {error}")) == (
        "ConfigError: inputs.crm: cannot open jdbc:x://me:***@host/d\nat a.b.c"
    )


def test_an_error_without_text_has_its_class_as_its_first_line() -> None:
    assert first_line(KeyError()) == "KeyError"


def test_nested_values_are_masked_by_their_keys_and_their_texts() -> None:
    values = {"a": ["password=hush", 1], "api_key": "hush", "b": None}
    assert masked_values(values) == {"a": ["password=***", 1], "api_key": "***", "b": None}


@pytest.mark.parametrize(
    "name", ["secret_env", "passwordFile", "credentials.provider", "tokenizer", "max_tokens"]
)
def test_a_name_that_refers_to_a_secret_is_none(name: str) -> None:
    assert not is_secret_name(name)
