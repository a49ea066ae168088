"""The identity map: raw customer id -> `customer_key`, the only door between the two.

`customer_key` is HMAC-SHA256 of the raw id under a secret, cut to 128 bits (32 hex characters). The secret
comes from the environment and is never written; `key_check` tells when a run brings another secret than
the tables were built with.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lam_spark.errors import ConfigError
from lam_spark.run import Run

KEY_HEX_DIGITS = 32
_MIN_SECRET_CHARACTERS = 32


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


def keyed_pseudonym(secret: bytes, raw_id: str) -> str:
    """HMAC-SHA256 of `raw_id`, the first 128 bits in hex."""
    return hmac.new(secret, b"customer:" + raw_id.encode(), hashlib.sha256).hexdigest()[:KEY_HEX_DIGITS]


def fitting_secret(run: Run) -> tuple[bytes, str]:
    """The secret and its check, after comparing it with the one that the tables were built with.

    Raises:
        ConfigError: the secret is missing, too short, or another one than before.
    """
    secret = secret_from_environment(run.config.identity.secret_env)
    check = hashlib.sha256(b"check:" + secret).hexdigest()[:8]
    if run.tables.exists("identity"):
        other = run.tables.read("identity").where(F.col("key_check") != check).limit(1)
        if not other.isEmpty():
            raise ConfigError(
                f"the secret in {run.config.identity.secret_env} is not the one that the tables in "
                f"{run.config.root} were built with: customers would get new keys. Set the old secret, or "
                "use another root"
            )
    return secret, check


def resolve(run: Run, rows: DataFrame) -> DataFrame:
    """Replace `customer_id` (raw, string, not null) by `customer_key`.

    Ids not seen before get their key and are kept in the table `identity`
    (grain: a raw id; columns `customer_id, customer_key, key_check`).
    Cost: one distinct over the ids, one join on the id; Python sees each new id once.

    Raises:
        ConfigError: the secret is missing, or is not the one of the earlier runs.
    """
    secret, check = fitting_secret(run)
    ids = rows.select("customer_id").distinct()
    if run.tables.exists("identity"):
        ids = ids.join(run.tables.read("identity"), "customer_id", "left_anti")

    def keys(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            made = [keyed_pseudonym(secret, raw) for raw in batch["customer_id"]]
            yield pd.DataFrame(
                {"customer_id": batch["customer_id"], "customer_key": made, "key_check": check}
            )

    fresh = ids.mapInPandas(keys, "customer_id STRING, customer_key STRING, key_check STRING")
    run.tables.insert_new(fresh, "identity", ["customer_id"])
    identity = run.tables.read("identity").select("customer_id", "customer_key")
    return rows.join(identity, "customer_id").drop("customer_id")
