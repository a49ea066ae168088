"""Sections `fetch` and `inputs`: where raw rows come from."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from lam_spark.config.base import Section, Text
from lam_spark.config.sql import SqlExpression

# In a JDBC URL: `password=` and similar parameters, `//user:secret@host`, Oracle's `user/secret@`.
_PASSWORD = re.compile(
    r"(password|passwd|pwd|token|secret)\s*=|//[^/?;]*:[^/?;]*@|:thin:[^/@]+/[^@]+@", re.IGNORECASE
)
# Names of reader options whose values are secrets.
_SECRET_OPTION = re.compile(r"password|passwd|pwd|token|secret", re.IGNORECASE)


class FetchConfig(Section):
    """A Python function that writes the raw files of a shipped data set. The stage `fetch` calls it."""

    function: str = Field(
        pattern=r"^[\w.]+:\w+$", description="function that writes raw files, as `module:function`"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the function, in addition to the raw folder"
    )


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
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="jdbc: option name -> environment variable that holds its value (a password)",
    )
    watermark: str | None = Field(
        default=None, description="jdbc: column whose values only grow (a number, date or timestamp)"
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
        if any(map(_SECRET_OPTION.search, self.options)) or _PASSWORD.search(self.options.get("url", "")):
            raise ValueError(
                "expected no password in options, got one; the configuration is copied into the audit: set "
                "secrets.password to the name of the environment variable that holds it"
            )
        return self
