"""The identity map: raw id -> pseudonym, the only door between the two.

A pseudonym is HMAC-SHA256 of the id's kind and text under a secret, cut to 128 bits (32 hex characters). The
pseudonym of a customer's own id is the `customer_key`; that of any other kind (cookie, device, phone) is an
`id_key`, which `links` tie to customers. The secret comes from the environment and is never written; `key_check`
tells when a run brings another secret than the tables were built with.
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

from lam_spark.errors import ConfigError
from lam_spark.runtime.context import Run

CUSTOMER = "customer"
KEY_HEX_DIGITS = 32
_MIN_SECRET_CHARACTERS = 32
# All that counts as white space: a padded column of a database brings blanks, a spreadsheet no-break spaces.
_WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ID = ["id_kind", "raw_id"]
_IDENTITY = "id_kind STRING, raw_id STRING, id_key STRING, key_check STRING"


def id_text(raw: Column) -> Column:
    """An id without the white space around it: for channels, links and the ledger `' C-12'` is `'C-12'`.

    Were they two customers, an opt-out of the one would leave the other's opt-in standing.
    """
    # Spark trims by the lengths that first bytes announce: text that is not UTF-8 may end before.
    return F.trim(F.make_valid_utf8(raw), F.lit(_WHITE_SPACE))


def secret_from_environment(variable: str) -> bytes:
    """Read the secret.

    Raises:
        ConfigError: unset or shorter than 32 characters.
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


@dataclass(frozen=True)
class Secret:
    """What pseudonyms are made with, and the `check` by which another one is noticed."""

    value: bytes = field(repr=False)
    check: str


def fitting_secret(run: Run) -> Secret:
    """The secret, after comparing it with the one that the tables were built with.

    Raises:
        ConfigError: the secret is missing, too short, or another one than before; or the tables hold ids with white
            space around them, which to an earlier version were other customers' than those without.
    """
    value = secret_from_environment(run.config.identity.secret_env)
    check = hashlib.sha256(b"check:" + value).hexdigest()[:8]
    if run.tables.exists("identity"):
        raw_id = F.col("raw_id")
        told = (
            run.tables.read("identity")
            .agg(F.count_if(F.col("key_check") != check), F.count_if(raw_id != id_text(raw_id)))
            .first()
        )
        assert told is not None  # an aggregate without keys gives one row
        others, padded = told
        if others:
            raise ConfigError(
                f"the secret in {run.config.identity.secret_env} is not the one that the tables in "
                f"{run.config.root} were built with: customers would get new keys. Set the old secret, or "
                "use another root"
            )
        if padded:
            raise ConfigError(
                f"expected ids without white space around them, the table identity in {run.config.root} holds "
                f"{padded:,} with it: an earlier version took ' C-12' and 'C-12' for two customers, and one of them "
                "may have opted out for both. Use another root"
            )
    return Secret(value, check)


def register_ids(run: Run, ids: DataFrame, secret: Secret) -> None:
    """Give every id that is not known yet its pseudonym, in the table `identity` (grain: kind and raw id).

    Args:
        run: the run.
        ids: `id_kind, raw_id` (strings, not null), in any number of copies.
        secret: as `fitting_secret` gives it.

    Cost: one distinct over the ids; Python sees each new id once.
    """

    def keys(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            pairs = zip(batch["id_kind"], batch["raw_id"], strict=True)
            made = pd.Series([keyed_pseudonym(secret.value, raw, kind) for kind, raw in pairs], dtype=object)
            yield batch.assign(id_key=made.to_numpy(), key_check=secret.check)

    run.tables.insert_new(ids.select(*_ID), "identity", _ID, lambda fresh: fresh.mapInPandas(keys, _IDENTITY))


def with_pseudonyms(run: Run, rows: DataFrame, kind: Column, raw: str, key: str) -> DataFrame:
    """Replace the column `raw` (registered ids, each of the kind `kind`) by their pseudonyms in the column `key`."""
    known = run.tables.read("identity").select(*_ID, F.col("id_key").alias(key))
    asked = rows.withColumns({"id_kind": kind, "raw_id": F.col(raw)}).drop(raw)
    return asked.join(known, _ID).drop(*_ID)


def resolve(run: Run, rows: DataFrame) -> DataFrame:
    """Replace `customer_id` (raw, string, not null) by `customer_key`, registering ids that are new.

    Raises:
        ConfigError: the secret is missing, or is not the one of the earlier runs.
    """
    kind = F.lit(CUSTOMER)
    ids = rows.select(kind.alias("id_kind"), F.col("customer_id").alias("raw_id"))
    register_ids(run, ids, fitting_secret(run))
    return with_pseudonyms(run, rows, kind, "customer_id", "customer_key")
