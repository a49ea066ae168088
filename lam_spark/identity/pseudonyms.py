"""The table `identity`: raw id -> pseudonym, the only door between the two.

A pseudonym is HMAC-SHA256 of an id's kind and text under a secret, truncated to 128 bits (32 hex characters). The
pseudonym of a customer's own id is the `customer_key`; that of any other kind (cookie, device, phone) is an
`id_key`, which links assign to customers. The secret comes from the environment and is never written;
`key_check` detects a secret other than the one the tables were built with.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, DoubleType, FloatType

from lam_spark.config import IdentityConfig
from lam_spark.errors import ConfigError
from lam_spark.storage.tables.store import Tables

CUSTOMER = "customer"
KEY_HEX_DIGITS = 32
_MIN_SECRET_CHARACTERS = 32
# White space, and control and format characters (byte order mark, NUL, zero-width space): databases pad with blanks,
# spreadsheets with no-break spaces, columns of fixed length with NUL. Classes of Java's regular expressions.
_INVISIBLE = r"[\p{Z}\p{Cc}\p{Cf}]"
_CONTROL = r"[\p{Zl}\p{Zp}\p{Cc}\p{Cf}]"
_ID = ["id_kind", "raw_id"]
_IDENTITY = "id_kind STRING, raw_id STRING, id_key STRING, key_check STRING"


@dataclass(frozen=True)
class Secret:
    """Key of the pseudonyms, and the check value that is stored with them."""

    value: bytes = field(repr=False)
    check: str


def id_text(raw: Column) -> Column:
    """A text without surrounding white space, control and format characters: `' C-12'` is `'C-12'`.

    As two customers, an opt-out of the one would leave the opt-in of the other in force.
    """
    return F.regexp_replace(F.make_valid_utf8(raw), rf"\A{_INVISIBLE}+|{_INVISIBLE}+\z", "")


def has_control_characters(name: str) -> Column:
    """Whether a column of `id_text` has control or format characters inside: such an id matches no other."""
    return F.col(name).rlike(_CONTROL)


def id_column(selected: DataFrame, name: str, statement: str, folds: Column | bool = False) -> Column:
    """The only way from a column of a configured select to the text of ids: of channels, links and the ledger.

    A whole number is one id whether its column is BIGINT or DECIMAL: `12.00` is `'12'`.

    Args:
        selected: Result of the select.
        name: Column of ids.
        statement: Key of the select in the configuration, for the message.
        folds: Whether ids are compared without case (`identity.fold_case`).

    Raises:
        ConfigError: The column is of a floating type, whose text depends on the size of the number.
    """
    kind = selected.schema[name].dataType
    if isinstance(kind, FloatType | DoubleType):
        raise ConfigError(
            f"{statement} yields {name} as {kind.simpleString()}: a floating number has no exact text, so one id could "
            "become several. Declare the column as STRING, BIGINT or DECIMAL in the input"
        )
    text = F.col(name).try_cast("string")
    if isinstance(kind, DecimalType) and kind.scale > 0:
        text = F.regexp_replace(text, r"\.?0*$", "")
    text = id_text(text)
    if folds is False:
        return text
    return F.lower(text) if folds is True else F.when(folds, F.lower(text)).otherwise(text)


def secret_from_environment(variable: str) -> bytes:
    """Read the secret.

    Raises:
        ConfigError: It is not set, or shorter than 32 characters.
    """
    secret = os.environ.get(variable, "")
    if len(secret) < _MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"expected a secret of at least {_MIN_SECRET_CHARACTERS} characters in the environment variable "
            f"{variable}, got {len(secret)} characters; make one with: openssl rand -hex 32"
        )
    return secret.encode()


def keyed_pseudonym(secret: bytes, raw_id: str, kind: str = CUSTOMER) -> str:
    """HMAC-SHA256 of `kind:raw_id`, the first 128 bits in hex."""
    return hmac.new(secret, f"{kind}:{raw_id}".encode(), hashlib.sha256).hexdigest()[:KEY_HEX_DIGITS]


def matching_secret(tables: Tables, identity: IdentityConfig) -> Secret:
    """The secret, checked against the one that the tables were built with.

    Raises:
        ConfigError: The secret is missing, too short, or differs from the earlier one.
    """
    value = secret_from_environment(identity.secret_env)
    check = hashlib.sha256(b"check:" + value).hexdigest()[:8]
    identities = tables.read_if_exists("identity")
    if identities is not None and not identities.where(F.col("key_check") != check).isEmpty():
        raise ConfigError(
            f"the secret in {identity.secret_env} is not the one that the tables in {tables.folder.parent} were "
            "built with: customers would get new keys. Set the old secret, or use another root"
        )
    return Secret(value, check)


def register_ids(tables: Tables, ids: DataFrame, secret: Secret) -> None:
    """Add the pseudonyms of new ids to the table `identity` (grain: kind and raw id).

    Cost: one distinct over the ids; Python sees each new id once.

    Args:
        tables: Tables of the workspace.
        ids: `id_kind`, `raw_id` (strings, not null), with any number of duplicates.
        secret: From `matching_secret`.
    """

    def pseudonyms(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            pairs = zip(batch["id_kind"], batch["raw_id"], strict=True)
            keys = pd.Series([keyed_pseudonym(secret.value, raw, kind) for kind, raw in pairs], dtype=object)
            yield batch.assign(id_key=keys.to_numpy(), key_check=secret.check)

    tables.insert_missing(
        ids.select(*_ID), "identity", _ID, lambda fresh: fresh.mapInPandas(pseudonyms, _IDENTITY)
    )


def with_pseudonyms(tables: Tables, rows: DataFrame, kind: Column, raw: str, key: str) -> DataFrame:
    """Replace the column `raw` (registered ids of the kind `kind`) by their pseudonyms in the column `key`."""
    identities = tables.read("identity").select(
        F.col("id_kind").alias("_id_kind"), F.col("raw_id").alias("_raw_id"), F.col("id_key").alias(key)
    )
    keyed = rows.withColumns({"_id_kind": kind, "_raw_id": F.col(raw)}).drop(raw)
    return keyed.join(identities, ["_id_kind", "_raw_id"]).drop("_id_kind", "_raw_id")


def resolve_customers(tables: Tables, rows: DataFrame, secret: Secret) -> DataFrame:
    """Replace `customer_id` (raw, string, not null) by `customer_key`; new ids are registered."""
    kind = F.lit(CUSTOMER)
    ids = rows.select(kind.alias("id_kind"), F.col("customer_id").alias("raw_id"))
    register_ids(tables, ids, secret)
    return with_pseudonyms(tables, rows, kind, "customer_id", "customer_key")
