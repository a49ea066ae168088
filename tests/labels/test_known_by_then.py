"""Anonymous visits that a later login assigns: nothing can be predicted, and no stage finds that it can.

Everybody looks around before each query, and purchases are drawn independently. Customers log in only to buy: the login
assigns the visits before it, so that in hindsight only buyers have visits. By today's links, a past query would see who
bought afterwards.
"""

from __future__ import annotations

import csv
import datetime as dt
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pyspark.sql import SparkSession

from lam_spark.evaluation.results import EvaluateResult
from lam_spark.runtime.context import RunContext
from lam_spark.stages import STAGES
from tests.support.shop import PURPOSES, context_builder, key_of, raw_id, settings

pytestmark = pytest.mark.long

CUSTOMERS, STEP = 250, dt.timedelta(days=28)
TEST_START = dt.datetime(2024, 10, 7, tzinfo=dt.UTC)
# Periods before and after the start of the test period; the last query is that of the list.
PERIODS = range(-9, 4)
AS_OF = TEST_START + PERIODS[-1] * STEP
NIGHT = dt.timedelta(hours=9)

Scores = dict[str, float]


@dataclass
class Shop:
    """Raw rows by input and night, and who buys after the list is made."""

    rows: dict[str, list[list[tuple[str, ...]]]] = field(
        default_factory=lambda: {name: [[], []] for name in ("orders", "visits", "logins")}
    )
    buys: dict[str, bool] = field(default_factory=dict)

    def add(self, name: str, at: dt.datetime, *values: str) -> None:
        self.rows[name][int(at >= AS_OF)].append((*values, at.isoformat()))

    @classmethod
    def draw(cls, seed: int) -> Shop:
        rng, shop = random.Random(seed), cls()
        for customer in map(raw_id, range(CUSTOMERS)):
            shop.add("orders", TEST_START + (PERIODS[0] - 1) * STEP, customer, "join")
            for period in PERIODS:
                day, cookie = TEST_START + period * STEP, f"{customer} {period}"
                for _ in range(3):
                    shop.add("visits", day - dt.timedelta(days=rng.uniform(0.1, 9)), cookie)
                bought_at = day + dt.timedelta(days=rng.uniform(0.5, 20))
                shop.buys[customer] = rng.random() < 0.3
                if shop.buys[customer]:
                    shop.add("logins", bought_at, cookie, customer)
                    shop.add("orders", bought_at, customer, "buy")
        return shop

    def write(self, raw: Path, night: int) -> None:
        """Write the files of a night."""
        head = {
            "orders": ("customer", "action", "at"),
            "visits": ("cookie", "at"),
            "logins": ("cookie", "customer", "at"),
        }
        for name, nights in self.rows.items():
            _write_csv(raw / name / f"{night}.csv", head[name], nights[night])


def _write_csv(path: Path, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def sections(root: Path) -> dict[str, Any]:
    def source(columns: str, name: str) -> dict[str, str]:
        return {"format": "csv", "path": str(root / "raw" / name), "columns": columns}

    link = "SELECT 'cookie' AS id_kind, cookie AS id, customer AS customer_id, at AS linked_at FROM logins"
    order = "SELECT customer AS customer_id, at AS event_time, action AS event_key, action, 'shop' AS place FROM orders"
    visit = (
        "SELECT cookie AS customer_id, at AS event_time, '' AS event_key, "
        "'look' AS action, 'web' AS place FROM visits"
    )
    return settings(root) | {
        "time_zone": "UTC",
        "as_of": AS_OF.date().isoformat(),
        "inputs": {
            "orders": source("customer STRING, action STRING, at TIMESTAMP", "orders"),
            "visits": source("cookie STRING, at TIMESTAMP", "visits"),
            "logins": source("cookie STRING, customer STRING, at TIMESTAMP", "logins"),
            "agreed": source("customer STRING, purpose STRING, stated_at TIMESTAMP", "agreed"),
        },
        "identity": {"links": {"login": {"grain": "logins", "select": link}}},
        "channels": {
            "shop": {"grain": "orders", "select": order},
            "web": {"grain": "visits", "id": "cookie", "select": visit},
        },
        "fields": {
            "action": {"role": "how", "kind": "categorical"},
            "place": {"role": "where", "kind": "categorical"},
        },
        "consent": {
            "select": "SELECT customer AS customer_id, purpose, 'opt_in' AS state, stated_at AS effective_at, "
            "stated_at AS recorded_at, 'list' AS source FROM agreed"
        },
        "targets": {
            "buys": {
                "description": "buys within 28 days",
                "every_days": STEP.days,
                "active_days": 3650,
                "outcome_filter": "action = 'buy'",
                "horizon_days": "28",
                "baseline_filter": "action = 'buy'",
            }
        },
        "quality": {"max_staleness_days": STEP.days},  # the latest visits belong to no customer yet
        "split": {
            "train_start": (TEST_START - 8 * STEP).date().isoformat(),
            "validation_start": (TEST_START - 3 * STEP).date().isoformat(),
            "test_start": TEST_START.date().isoformat(),
        },
        "training": {
            "launcher": "in_process",
            "world_size": 1,
            "pretrain_epochs": 1,
            "finetune_epochs": 3,
            "micro_batch_size": 4,
        },
        "scoring": {
            "target": "buys",
            "proposals": "SELECT 'none' AS proposal_id, 'no offer' AS description",
        },
    }


def run(ctx: RunContext, *names: str) -> Any:
    """Run stages; returns the result of the last."""
    results = [STAGES[name].load()(ctx) for name in names]
    return results[-1]


def scores(ctx: RunContext) -> Scores:
    rows = ctx.tables.read("scores").select("customer_key", "probability").toLocalIterator()
    return {row["customer_key"]: row["probability"] for row in rows}


@dataclass(frozen=True)
class LeakyShop:
    """The shop after the night of the list.

    Attributes:
        build: Makes a context of a later run.
        held_out: Result of `evaluate`.
        live: Scores of the night.
    """

    shop: Shop
    root: Path
    build: Callable[..., RunContext]
    held_out: EvaluateResult
    live: Scores


@pytest.fixture(scope="module")
def leaky_shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> LeakyShop:
    root, shop = tmp_path_factory.mktemp("known") / "shop", Shop.draw(seed=2)
    shop.write(root / "raw", night=0)
    agreed = [(raw_id(n), purpose, "2024-01-01T00:00:00Z") for n in range(CUSTOMERS) for purpose in PURPOSES]
    _write_csv(root / "raw" / "agreed" / "1.csv", ("customer", "purpose", "stated_at"), agreed)
    builder = context_builder(spark, root)

    def build(at: dt.datetime, **more: Any) -> RunContext:
        return builder(started_at=at + NIGHT, **(sections(root) | more))

    ctx = build(AS_OF)
    run(ctx, "ingest", "consent", "sequences", "examples", "snapshot", "train")
    return LeakyShop(shop, root, build, run(ctx, "evaluate"), scores_of_night(ctx))


def scores_of_night(ctx: RunContext) -> Scores:
    run(ctx, "score")
    return scores(ctx)


def auc_and_spread(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """AUC (ties count half), and its standard deviation if the scores tell nothing."""
    ahead = (scores[positive][:, None] > scores[~positive]).mean()
    tied = (scores[positive][:, None] == scores[~positive]).mean()
    positives, negatives = positive.sum(), (~positive).sum()
    return float(ahead + tied / 2), float(np.sqrt((len(scores) + 1) / (12 * positives * negatives)))


def test_the_model_predicts_nothing_on_the_test_period(leaky_shop: LeakyShop) -> None:
    assert leaky_shop.held_out.rankings is not None, leaky_shop.held_out.not_measured
    low, high = leaky_shop.held_out.rankings.model.auc_interval
    assert low < 0.5 < high
    assert high - low < 0.2
    assert leaky_shop.held_out.examples == 2 * CUSTOMERS  # the horizon of a third query is not over


def test_the_model_predicts_nothing_of_what_follows_the_list(leaky_shop: LeakyShop) -> None:
    customers = sorted(leaky_shop.shop.buys)
    live = np.array([leaky_shop.live[key_of(customer)] for customer in customers])
    auc, spread = auc_and_spread(live, np.array([leaky_shop.shop.buys[customer] for customer in customers]))
    assert abs(auc - 0.5) < 1.96 * spread < 0.1


def test_a_past_day_gets_the_scores_of_its_night_after_later_links(leaky_shop: LeakyShop) -> None:
    """The same rule live and in hindsight, also for the events that a later login has assigned."""
    leaky_shop.shop.write(leaky_shop.root / "raw", night=1)
    later = AS_OF + STEP
    ctx = leaky_shop.build(later, as_of=later.date().isoformat())
    assert run(ctx, "ingest").counts["resolved_later"] > CUSTOMERS / 2
    run(ctx, "sequences")
    again = scores_of_night(leaky_shop.build(later))
    assert again.keys() == leaky_shop.live.keys()
    np.testing.assert_allclose(
        [again[key] for key in leaky_shop.live], list(leaky_shop.live.values()), atol=1e-5
    )
