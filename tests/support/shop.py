"""A small data set for the Spark and the end-to-end tests, and run contexts over it.

The data set is a shop's year (2023, Europe/Berlin, so with two clock changes): purchases in Parquet on a UTC
clock, mailings in CSV on local days, responses in JSON lines on local days, a look-up of products, and consent
statements. Raw ids have a unique form (`RAW-CUSTOMER-000123`), so that a leaked one is found by its text.
"""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lam_spark.identity.pseudonyms import keyed_pseudonym

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from lam_spark.config import Config
    from lam_spark.runtime.context import RunContext

Row = dict[str, Any]

SECRET = "a secret of the tests, 32 characters and more"
ZONE = "Europe/Berlin"
CATEGORIES = ("books", "games", "music", "tools")
PURPOSES = ("model_training", "direct_marketing")
STARTED_AT = dt.datetime(2024, 1, 2, 9, tzinfo=dt.UTC)

# Consent status of the customer with number n, by n % 20. The first fourteen agreed to both purposes.
TRAINING_ONLY, CONTACT_ONLY, WITHDREW, REFUSED, UNCLEAR, NEVER_ASKED = 14, 15, 16, 17, 18, 19

# First sold in the test period; bought by no customer who agreed to training.
LATE_PRODUCT, REFUSED_PRODUCT = "first sold in the test period", "bought by those who refused"

_MAILING_DAYS = (
    "2023-02-10",
    "2023-03-20",  # its fourteen days cross the spring clock change
    "2023-04-15",
    "2023-05-15",
    "2023-06-10",
    "2023-06-25",  # straddles the start of validation
    "2023-07-15",
    "2023-08-15",
    "2023-09-10",
    "2023-09-25",  # opens in validation, ends in the test period: unused
    "2023-10-20",  # crosses the autumn clock change
    "2023-11-15",
    "2023-12-01",
    "2023-12-15",  # not over at as_of: unused
)

ONE_TARGET: Row = {
    "response": {
        "description": "answers the mailing while it runs",
        "population": "action = 'propose'",
        "outcome_filter": "action = 'respond'",
        "label": "outcome.campaign = query.campaign",
        "horizon_days": "query.offer_days",
        "baseline_filter": "action = 'respond'",
        "baseline_name": "previous responses",
    },
}
# A query every four weeks for customers with recent purchases.
_REGULARLY = {
    "every_days": 28,
    "active": "action = 'purchase'",
    "outcome_filter": "action = 'purchase'",
    "horizon_days": "28",
    "baseline_filter": "action = 'purchase'",
}
MORE_TARGETS: Row = {
    "lapse": {
        **_REGULARLY,
        "description": "buys nothing in the next four weeks",
        "negate": True,
        "baseline": "-count(*)",
    },
    "spend": {
        **_REGULARLY,
        "kind": "value",
        "value": "sum(outcome.amount)",
        "description": "spends in the next four weeks",
        "baseline": "sum(amount) FILTER (WHERE event_time >= as_of - INTERVAL 28 DAYS)",
    },
    "items": {**_REGULARLY, "kind": "next", "field": "item", "description": "buys from these categories"},
}

_PURCHASES = pa.schema(
    [
        ("customer", pa.string()),
        ("bought_at", pa.timestamp("us", tz="UTC")),
        ("basket", pa.int64()),
        ("product", pa.string()),
        ("amount", pa.float64()),
    ]
)
# Small queries: compiling them costs more than running them.
QUICK = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
_CSV_COLUMNS = {
    "mailings": ("customer", "mailing", "day", "kind", "days"),
    "products": ("product", "category"),
    "consent_statements": ("customer", "purpose", "state", "effective_at", "recorded_at", "source"),
}


def settings(root: Path) -> Row:
    """Configuration of the small shop, as the mapping in its YAML file."""
    return {
        "name": "small_shop",
        "time_zone": ZONE,
        "root": str(root),
        "as_of": "2023-12-20",
        "inputs": {
            "purchases": {
                "format": "parquet",
                "path": "{root}/raw/purchases.parquet",
                "columns": "customer STRING, bought_at TIMESTAMP, basket BIGINT, product STRING, amount DOUBLE",
            },
            "products": {
                "format": "csv",
                "path": "{root}/raw/products.csv",
                "columns": "product STRING, category STRING",
            },
            "mailings": {
                "format": "csv",
                "path": "{root}/raw/mailings.csv",
                "columns": "customer STRING, mailing STRING, day DATE, kind STRING, days INT",
            },
            "responses": {
                "format": "json",
                "path": "{root}/raw/responses.jsonl",
                "columns": "customer STRING, mailing STRING, day DATE",
            },
            "consent_statements": {
                "format": "csv",
                "path": "{root}/raw/consent_statements.csv",
                "columns": (
                    "customer STRING, purpose STRING, state STRING, effective_at TIMESTAMP, "
                    "recorded_at TIMESTAMP, source STRING"
                ),
            },
        },
        "channels": {
            "shop": {
                "grain": "purchases",
                "select": (
                    "SELECT customer AS customer_id, bought_at AS event_time, "
                    "concat_ws(':', basket, product) AS event_key, 'store' AS touchpoint, category AS item, "
                    "product, 'purchase' AS action, amount "
                    "FROM purchases LEFT JOIN products USING (product)"
                ),
            },
            # The shop mails now and then: a quiet month is no outage.
            "mailing": {
                "grain": "mailings",
                "max_silence_days": None,
                "select": (
                    f"SELECT customer AS customer_id, to_utc_timestamp(day, '{ZONE}') AS event_time, "
                    "mailing AS event_key, 'mail' AS touchpoint, kind AS item, 'propose' AS action, "
                    "days AS offer_days, mailing AS campaign FROM mailings"
                ),
            },
            "response": {
                "grain": "responses",
                "max_silence_days": None,
                "select": (
                    "SELECT customer AS customer_id, "
                    f"to_utc_timestamp(day + INTERVAL '12:00:00' HOUR TO SECOND, '{ZONE}') AS event_time, "
                    "mailing AS event_key, 'web' AS touchpoint, 'respond' AS action, mailing AS campaign "
                    "FROM responses"
                ),
            },
        },
        "fields": {
            "touchpoint": {"role": "where", "kind": "categorical"},
            "item": {"role": "what", "kind": "categorical"},
            "product": {"role": "what", "kind": "categorical"},
            "action": {"role": "how", "kind": "categorical"},
            "amount": {"role": "how", "kind": "numeric"},
            "offer_days": {"role": "what", "kind": "numeric"},
            "campaign": {"role": "what", "kind": "reference"},
        },
        "consent": {
            "select": (
                "SELECT customer AS customer_id, purpose, state, effective_at, recorded_at, source "
                "FROM consent_statements"
            )
        },
        "targets": {
            **ONE_TARGET,
            **MORE_TARGETS,
        },
        "split": {
            "train_start": "2023-02-01",
            "validation_start": "2023-07-01",
            "test_start": "2023-10-01",
        },
        "snapshot": {"queries_per_block": 16, "files": 2},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context_events": 64, "window_days": [28, 91]},
        "training": {"world_size": 2, "pretrain_epochs": 1, "finetune_epochs": 2, "micro_batch_size": 4},
        "scoring": {
            "target": "response",
            "proposals": (
                "SELECT concat('two weeks of ', category) AS proposal_id, "
                "concat('mail about ', category) AS description, 'mail' AS touchpoint, category AS item, "
                "'propose' AS action, 14 AS offer_days FROM (SELECT DISTINCT category FROM products)"
            ),
        },
        "delivery": {"capacity": 50},
        "quality": {"min_positives": 1},  # the worlds of the tests are small
        "words": {"outcome_verb": "answered"},
        "spark": {
            "master": "local[2,4]",
            "driver_memory": "1g",
            "shuffle_partitions": 3,
            "settings": QUICK,
        },
    }


def raw_id(number: int) -> str:
    """A raw customer id, in a form that no other text of the project has."""
    return f"RAW-CUSTOMER-{number:06d}"


def key_of(raw: str) -> str:
    """The pseudonym of a raw id under the secret of the tests."""
    return keyed_pseudonym(SECRET.encode(), raw)


def keys_of(raw_ids: Iterable[str]) -> set[str]:
    """The pseudonyms of raw ids."""
    return set(map(key_of, raw_ids))


def purchase(customer: str | None, bought_at: dt.datetime | None, basket: int | None = 1, **more: Any) -> Row:
    """A raw purchase; `more` sets product and amount."""
    return {"product": "books 1", "amount": 1.0, **more} | {
        "customer": customer,
        "bought_at": bought_at,
        "basket": basket,
    }


def mailing(customer: str, day: str, days: int = 14, **more: Any) -> Row:
    """A raw mailing, named by its day."""
    return {"mailing": f"mailing of {day}", "kind": "books", **more} | {
        "customer": customer,
        "day": day,
        "days": days,
    }


def response(customer: str, day: str, mailing_day: str) -> Row:
    """A raw response to the mailing of a day."""
    return {"customer": customer, "mailing": f"mailing of {mailing_day}", "day": day}


def statement(
    customer: str | None, purpose: str | None, state: str | None, effective_at: str, recorded_at: str = ""
) -> Row:
    """A raw consent statement; by default it is recorded when it takes effect."""
    return {
        "customer": customer,
        "purpose": purpose,
        "state": state,
        "effective_at": effective_at,
        "recorded_at": recorded_at or effective_at,
        "source": "web form",
    }


def write_inputs(
    raw: Path,
    purchases: Sequence[Row] = (),
    mailings: Sequence[Row] = (),
    responses: Sequence[Row] | None = None,
    statements: Sequence[Row] = (),
) -> None:
    """Write the five files of the shop's raw folder; by default with one response."""
    responses = [response(raw_id(0), "2023-03-21", "2023-03-20")] if responses is None else responses
    raw.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(purchases), _PURCHASES), raw / "purchases.parquet")
    products = [{"product": f"{c} {n}", "category": c} for c in CATEGORIES for n in range(4)]
    _write_csv(raw / "products.csv", products)
    _write_csv(raw / "mailings.csv", mailings)
    _write_csv(raw / "consent_statements.csv", statements)
    lines = [json.dumps(row) + "\n" for row in responses]
    (raw / "responses.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _CSV_COLUMNS[path.stem])
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class DataSet:
    """A data set on disk and what is known about it.

    Attributes:
        root: Workspace; the inputs are in `root/raw`.
        conf: YAML file of the configuration.
        everyone: Raw ids with at least one event.
        training: Raw ids eligible for training.
        contact: Raw ids eligible for contact.
        expected: Counts that `ingest` must give.
    """

    root: Path
    conf: Path
    everyone: tuple[str, ...]
    training: frozenset[str]
    contact: frozenset[str]
    expected: dict[str, int] = field(default_factory=dict)

    def config(self, *overrides: str) -> Config:
        """The configuration, with `key=value` overrides."""
        from lam_spark.config.load import load_config

        return load_config(self.conf, overrides=overrides)


def draw_data_set(root: Path, customers: int = 300, seed: int = 11, targets: Row | None = None) -> DataSet:
    """Generate a year of the shop, in which customers respond to mailings about the categories that they buy.

    `targets` replaces the four targets; each takes seconds in most stages.
    """
    rng = np.random.default_rng(seed)
    ids = tuple(raw_id(number) for number in range(1, customers + 1))
    taste = rng.integers(0, len(CATEGORIES), customers)
    purchases, mailings, responses = [], [], []
    basket = itertools.count(1)
    start = dt.datetime(2023, 1, 3, tzinfo=dt.UTC)
    for number, customer in enumerate(ids):
        bought = 8
        likes = rng.random(bought) < 0.8
        category = np.where(likes, taste[number], rng.integers(0, len(CATEGORIES), bought))
        for c, n, minute, amount in zip(
            category,
            rng.integers(0, 4, bought),
            rng.integers(0, 355 * 24 * 60, bought),
            rng.gamma(2.0, 10.0, bought).round(2),
            strict=True,
        ):
            at = start + dt.timedelta(minutes=int(minute))
            purchases.append(
                purchase(customer, at, next(basket), product=f"{CATEGORIES[c]} {n}", amount=float(amount))
            )
        for day in _MAILING_DAYS:
            mailed, kind, luck, after = rng.random(), rng.integers(0, 4), rng.random(), rng.integers(1, 13)
            if mailed < 0.45:
                mailings.append(mailing(customer, day, kind=CATEGORIES[kind]))
                if luck < (0.75 if kind == taste[number] else 0.05):
                    answered = dt.date.fromisoformat(day) + dt.timedelta(days=int(after))
                    responses.append(response(customer, answered.isoformat(), day))
    late = dt.datetime(2023, 11, 5, 12, tzinfo=dt.UTC)
    early = dt.datetime(2023, 3, 5, 12, tzinfo=dt.UTC)
    purchases += [purchase(c, late, next(basket), product=LATE_PRODUCT) for c in ids[:10]]
    refused = ids[REFUSED::20]
    purchases += [purchase(c, early, next(basket), product=REFUSED_PRODUCT) for c in refused]
    good = len(purchases) + len(mailings) + len(responses)
    again = purchases[:7]
    broken = [
        purchase(None, early, next(basket)),
        purchase("  ", early, next(basket)),
        purchase(ids[0], None, next(basket)),
        purchase(ids[0], dt.datetime(2100, 1, 1, tzinfo=dt.UTC), next(basket)),
        purchase(ids[0], early, next(basket), amount=float("nan")),
    ]
    everything = [*purchases, *again, *broken]
    order = rng.permutation(len(everything))
    raw = root / "raw"
    write_inputs(
        raw,
        [everything[i] for i in order],
        mailings,
        responses,
        _draw_statements(ids),
    )
    with (raw / "mailings.csv").open("a", encoding="utf-8") as file:
        file.write("someone,mailing of 2023-02-10,2023-02-31,books,14\n")
    with (raw / "responses.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"customer": "someone", "mailing": \n')
    conf = root.with_suffix(".yaml")
    content = settings(root)
    content["targets"] = targets or content["targets"]
    conf.write_text(yaml.safe_dump(content, sort_keys=False))
    total = good + len(again) + len(broken) + 2
    return DataSet(
        root=root,
        conf=conf,
        everyone=ids,
        training=frozenset(c for n, c in enumerate(ids) if n % 20 <= TRAINING_ONLY),
        contact=frozenset(c for n, c in enumerate(ids) if n % 20 < TRAINING_ONLY or n % 20 == CONTACT_ONLY),
        expected={
            "rows_in": total,
            "events": good,
            "duplicates": len(again),
            "quarantined": len(broken) + 2,
        },
    )


def _draw_statements(ids: Sequence[str]) -> list[Row]:
    training, contact = PURPOSES
    first, changed = "2023-01-02T10:00:00Z", "2023-05-02T10:00:00Z"
    rows = []
    for number, customer in enumerate(ids):
        kind = number % 20
        if kind == NEVER_ASKED:
            continue
        for purpose in PURPOSES:
            no = kind == REFUSED or (kind, purpose) in ((TRAINING_ONLY, contact), (CONTACT_ONLY, training))
            rows.append(statement(customer, purpose, "opt_out" if no else "opt_in", first))
            if kind in (WITHDREW, UNCLEAR):  # unclear: the two newest statements disagree
                rows.append(statement(customer, purpose, "opt_out", changed if kind == WITHDREW else first))
    rows.append(statement(ids[0], training, "opt_out", "2023-03-01T10:00:00Z"))
    rows.append(statement(ids[0], training, "opt_in", "2023-04-01T10:00:00Z"))
    rows.append(statement(ids[1], contact, "opt_in", "2100-01-01T00:00:00Z", first))  # not yet in effect
    return rows


def context_builder(spark: SparkSession, root: Path) -> Callable[..., RunContext]:
    """The function behind the fixture `make_context`, for fixtures of a wider scope."""
    from lam_spark.runtime.context import RunContext
    from lam_spark.runtime.log import RunLog
    from lam_spark.storage.tables.store import Tables

    numbers = itertools.count(1)

    def build(
        config: Config | None = None, started_at: dt.datetime = STARTED_AT, **sections: Any
    ) -> RunContext:
        if config is None:
            from lam_spark.config.load import load_config

            path = root.with_suffix(".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(settings(root) | sections, sort_keys=False))
            config = load_config(path)
        run_id = f"test-{next(numbers):03d}"
        return RunContext(
            config=config,
            run_id=run_id,
            started_at=started_at,
            spark=spark,
            tables=Tables(spark, config.workspace / "tables"),
            log=RunLog(run_id, None),
            clock=lambda: started_at,
        )

    return build
