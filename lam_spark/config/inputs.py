"""Sections `fetch` and `inputs`: where raw rows come from."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from lam_spark.config.base import Section, Text, Variable
from lam_spark.config.secrets import refuse_secrets
from lam_spark.config.sql import SqlExpression

# Texts inside SQL of a database: a column may be named `token`, a text `password=...` is a connection string.
_TEXT = re.compile(r"'(?:[^']|'')*'")


class FetchConfig(Section):
    """A Python function that writes the raw files of a shipped data set. The stage `fetch` calls it."""

    function: str = Field(
        pattern=r"^[\w.]+:\w+$", description="function that writes raw files, as `module:function`"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the function, in addition to the raw folder"
    )
    secrets: dict[str, Variable] = Field(
        default_factory=dict,
        description="argument -> environment variable that holds its value (a password, a key)",
    )

    @model_validator(mode="after")
    def _contains_no_secret(self) -> FetchConfig:
        remedy = "set secrets.ARGUMENT to the name of the environment variable that holds it"
        refuse_secrets(self.arguments, "arguments", remedy)
        shared = sorted(self.secrets.keys() & self.arguments.keys())
        if shared:
            raise ValueError(f"expected each argument once, got {', '.join(shared)} in arguments and secrets")
        return self


class InputConfig(Section):
    """A raw input, read by one of Spark's readers under an explicit schema.

    File inputs have a `path`. A `jdbc` input has the options `url` and either `dbtable` or `query` instead.

    With a `watermark`, a later run reads only database rows above the highest value of the run before. It reads rows
    at that value again if their number has changed. A row that is committed late with a lower value is read by the
    next rebuild only. Without a watermark the whole database table is read each time.
    """

    format: Literal["parquet", "csv", "json", "delta", "jdbc"] = Field(
        description="reader of Spark; json has one document per line"
    )
    path: str = Field(
        default="",
        description="file, folder or glob; required for all formats except jdbc; `{root}` is replaced",
    )
    columns: SqlExpression = Field(
        description="column names and types as Spark DDL, e.g. `id BIGINT, day DATE`; other columns are an error"
    )
    options: dict[str, Text] = Field(
        default_factory=dict,
        description="options of Spark's reader, e.g. `sep`; jdbc: `url`, `dbtable` or `query`, `user`, `driver`",
    )
    secrets: dict[str, Variable] = Field(
        default_factory=dict,
        description="jdbc: option name -> environment variable that holds its value (a password)",
    )
    watermark: str | None = Field(
        default=None, description="jdbc: column whose values only grow (a number, date or timestamp)"
    )
    customer_id: str | None = Field(
        default=None,
        description="look-up: column that holds a customer's id; the versions of the row are kept under its pseudonym",
    )
    keep_versions: bool = Field(
        default=True,
        description="look-up: keep each content as a version in the table `lookups`; false: its rows are only added "
        "and never change, so that every content gives the same events",
    )

    @model_validator(mode="after")
    def _location_fits_format(self) -> InputConfig:
        if self.format == "jdbc":
            if self.path or "url" not in self.options or not {"dbtable", "query"} & set(self.options):
                raise ValueError(
                    "expected a jdbc input without path, with the options url and either dbtable or query; "
                    f"got path {self.path!r} and options {sorted(self.options)}"
                )
        elif not self.path:
            raise ValueError(f"expected a path for the format {self.format}, got none")
        if self.watermark and self.format != "jdbc":
            raise ValueError(
                f"watermark is for format jdbc, the format here is {self.format}: remove it, new files and Delta "
                "versions are recognised without it"
            )
        return self

    @model_validator(mode="after")
    def _contains_no_password(self) -> InputConfig:
        if self.secrets and self.format != "jdbc":
            raise ValueError(
                f"secrets are for format jdbc, the format here is {self.format}: remove them, files are read with the "
                "permissions of the Spark session"
            )
        remedy = "set secrets.OPTION, such as secrets.password, to the name of the environment variable that holds it"
        if self.format != "jdbc":
            remedy = "name an environment variable under spark.secrets, which sets a Spark setting"
        refuse_secrets({"path": self.path}, "an input", remedy)
        statements = {key: self.options[key] for key in ("query", "dbtable") if key in self.options}
        others = {key: value for key, value in self.options.items() if key not in statements}
        refuse_secrets(others, "options", remedy)
        texts = {key: _TEXT.findall(statement) for key, statement in statements.items()}
        refuse_secrets(texts, "options", "keep the connection in the database, as a foreign server")
        return self
