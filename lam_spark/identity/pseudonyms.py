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

from lam_spark.config import IdentityConfig
from lam_spark.errors import ConfigError
from lam_spark.storage.tables.store import Tables

CUSTOMER = "customer"
KEY_HEX_DIGITS = 32
_MIN_SECRET_CHARACTERS = 32
# All Unicode white space: databases pad with blanks, spreadsheets with no-break spaces.
_WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ID = ["id_kind", "raw_id"]
_IDENTITY = "id_kind STRING, raw_id STRING, id_key STRING, key_check STRING"


@dataclass(frozen=True)
class Secret:
    """Key of the pseudonyms, and the check value that is stored with them."""

    value: bytes = field(repr=False)
    check: str


def id_text(raw: Column) -> Column:
    """An id without surrounding white space: for channels, links and the ledger `' C-12'` is `'C-12'`.

    As two customers, an opt-out of the one would leave the opt-in of the other in force.
    """
    # Spark trims by the lengths that first bytes announce: text that is not UTF-8 may end before.
    return F.trim(F.make_valid_utf8(raw), F.lit(_WHITE_SPACE))


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
