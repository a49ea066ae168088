"""All stages give the same tables in sessions of any time zone, with and without ANSI mode."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from lam_spark.config import Config
from lam_spark.config.load import load_config
from lam_spark.evaluation.results import EvaluateResult
from lam_spark.runtime.results import StageResult
from lam_spark.runtime.runner import run_stages
from tests.support.runs import rows
from tests.support.shop import ONE_TARGET, STARTED_AT, draw_data_set, raw_id, settings

# Three workspaces: on a busy machine they take longer than the default of a test.
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

# Stages up to the model, and those that use it.
TO_MODEL = ("ingest", "consent", "sequences", "examples", "snapshot", "train")
BY_MODEL = ("score", "evaluate", "deliver", "embed")
# The session that the package makes itself, and two that a platform might bring: time zone, ANSI mode.
REFERENCE = ("UTC", "true")
OTHERS = [("Asia/Tokyo", "true"), ("America/New_York", "false")]

EXACT = (
    "identity", "links", "events", "quarantine", "unresolved", "reconciliation", "consent", "vocabulary",
    "value_counts", "sequences", "examples", "training_blocks",
)  # fmt: skip
# Tables with numbers of the model, which depend on the order of additions, and their keys.
NEAR = {
    "scores": ("customer_key", "proposal_id", "as_of"),
    "held_out_scores": ("query_id",),
    "contact_list": ("customer_key", "as_of"),
    "embeddings": ("customer_key", "as_of"),
}
_OF_RUN = ("run_id", "ingested_at", "mapping", "consent_version")

# Texts without a zone, local days and local times, at which the session's zone could take effect.
MORE_INPUTS = {
    "calls": {"format": "csv", "path": "{root}/raw/calls.csv", "columns": "customer STRING, day DATE, at TIMESTAMP"},
    "visits": {"format": "csv", "path": "{root}/raw/visits.csv", "columns": "cookie STRING, local STRING"},
    "logins": {
        "format": "csv", "path": "{root}/raw/logins.csv", "columns": "cookie STRING, customer STRING, at TIMESTAMP",
    },
}  # fmt: skip
MORE_CHANNELS = {
    "call": {
        "grain": "calls",
        "select": "SELECT customer AS customer_id, day AS event_time, concat('call ', at) AS event_key, 'phone' AS "
        "touchpoint, 'call' AS action, CAST(hour(at) AS STRING) AS item FROM calls",
        "rules": {"in_this_year": "event_time < TIMESTAMP '2023-12-17 00:00:00' AND minute(event_time) = 59"},
    },
    "visit": {
        "grain": "visits",
        "select": "SELECT cookie AS customer_id, local AS event_time, local AS event_key, 'web' AS touchpoint, "
        "'visit' AS action FROM visits",
        "id": "cookie",
        "clock": {"zone": "Europe/Berlin", "format": "dd.MM.yyyy HH:mm:ss"},
    },
}
IDENTITY = {
    "links": {
        "login": {
            "grain": "logins",
            "select": "SELECT 'cookie' AS id_kind, cookie AS id, customer AS customer_id, at AS linked_at FROM logins",
        }
    },
    "lookback_days": 7,
}


@dataclass(frozen=True)
class Workspace:
    """A workspace after all stages."""

    root: Path
    results: dict[str, StageResult]


def make_config(root: Path) -> Config:
    """The small shop with a channel of local times, one of days, and links."""
    draw_data_set(root, customers=240)
    raw = root / "raw"
    days = [f"2023-{month:02}-{day:02}" for month in range(1, 13) for day in (4, 17)]
    calls = [f"{raw_id(number)},{day},{day} 23:30:00" for number in range(1, 61) for day in days]
    (raw / "calls.csv").write_text("\n".join(["customer,day,at", *calls]) + "\n")
    # In the night of 26 March, 02:30 does not exist; on 29 October it occurs twice.
    local = [
        "25.03.2023 23:30:00",
        "26.03.2023 02:30:00",
        "29.10.2023 02:30:00",
        "30.06.2023 00:15:00",
        "soon",
    ]
    visits = [f"c{number},{text}" for number in range(1, 61) for text in local]
    (raw / "visits.csv").write_text("\n".join(["cookie,local", *visits]) + "\n")
    # Seven days before midnight UTC on 1 July: the visit on 30 June is within them, that of March is not.
    logins = [f"c{number},{raw_id(number)},2023-07-06 22:10:00" for number in range(1, 51)]
    (raw / "logins.csv").write_text("\n".join(["cookie,customer,at", *logins]) + "\n")
    with (raw / "consent_statements.csv").open("a") as file:  # takes effect within a day of the run
        file.write(f"{raw_id(5)},direct_marketing,opt_out,2024-01-02 12:00:00,2024-01-02 02:00:00,phone\n")
    content = settings(root)
    content["inputs"] |= MORE_INPUTS
    content["channels"] |= MORE_CHANNELS
    content |= {"identity": IDENTITY, "quality": {"max_quarantine_share": 0.5}}
    content["targets"] = ONE_TARGET
    content["training"] |= {"launcher": "in_process", "world_size": 1, "finetune_epochs": 1}
    conf = root.with_suffix(".yaml")
    conf.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config(conf)


def run(
    spark: SparkSession, config: Config, names: tuple[str, ...], zone: str, ansi: str
) -> dict[str, StageResult]:
    """Run stages in a session of its own, whose settings are the same afterwards."""
    session = spark.newSession()
    set_by_user = {"spark.sql.session.timeZone": zone, "spark.sql.ansi.enabled": ansi}
    for key, value in set_by_user.items():
        session.conf.set(key, value)
    results = run_stages(config, names, session=session, clock=lambda: STARTED_AT)
    assert {key: session.conf.get(key) for key in set_by_user} == set_by_user
    return results


@pytest.fixture(scope="module")
def workspaces(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    """Time zone -> the workspace that a session of it made.

    Each trains a model of its own; then all use the model of the first, because trained weights depend on the order of
    additions. All sessions report on the first. The process of the last has another time zone than its session.
    """
    folder = tmp_path_factory.mktemp("sessions")
    made: dict[str, Workspace] = {}
    first: Config | None = None
    with pytest.MonkeyPatch.context() as patch:
        for zone, ansi in [REFERENCE, *OTHERS]:
            config = make_config(folder / zone.replace("/", "_"))
            if zone == OTHERS[-1][0]:
                patch.setitem(os.environ, "TZ", "Asia/Kathmandu")
                time.tzset()
            results = run(spark, config, TO_MODEL, zone, ansi)
            first = first or config
            with patch.context() as using:
                using.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{first.workspace / 'mlflow' / 'mlflow.db'}")
                results |= run(spark, config, BY_MODEL, zone, ansi)
                results |= run(spark, first, ("report",), zone, ansi)
            made[zone] = Workspace(config.workspace, results)
    time.tzset()
    return made


def plain(workspace: Workspace, table: str) -> list[dict[str, Any]]:
    """Rows of a table without what belongs to the run."""
    return [{k: v for k, v in row.items() if k not in _OF_RUN} for row in rows(workspace.root, table)]


@pytest.mark.parametrize("zone", [zone for zone, _ in OTHERS])
@pytest.mark.parametrize("table", EXACT)
def test_tables_are_equal(workspaces: dict[str, Workspace], zone: str, table: str) -> None:
    expected, actual = (sorted(map(repr, plain(workspaces[name], table))) for name in (REFERENCE[0], zone))
    assert expected
    assert actual == expected


@pytest.mark.parametrize("zone", [zone for zone, _ in OTHERS])
@pytest.mark.parametrize("table", NEAR)
def test_tables_with_numbers_of_the_model_are_equal_but_for_rounding(
    workspaces: dict[str, Workspace], zone: str, table: str
) -> None:
    expected, actual = (
        sorted(plain(workspaces[name], table), key=lambda row: [str(row[key]) for key in NEAR[table]])
        for name in (REFERENCE[0], zone)
    )
    assert expected
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        assert_near(left, right)


def assert_near(left: Any, right: Any) -> None:
    """Compare values exactly, and numbers to the fourth decimal; `rank` may change places of nearly equal scores."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            if key != "rank":
                assert_near(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_near(one, other)
    elif isinstance(left, float) and isinstance(right, float):
        assert math.isclose(left, right, abs_tol=1e-4) or (math.isnan(left) and math.isnan(right))
    else:
        assert left == right


@pytest.mark.parametrize("zone", [zone for zone, _ in OTHERS])
def test_results_are_equal(workspaces: dict[str, Workspace], zone: str) -> None:
    expected, actual = workspaces[REFERENCE[0]].results, workspaces[zone].results
    counted = [name for name in (*TO_MODEL, *BY_MODEL, "report") if name != "train"]
    assert {name: dict(actual[name].counts) for name in counted} == {
        name: dict(expected[name].counts) for name in counted
    }
    evaluations = [results["evaluate"] for results in (expected, actual)]
    periods = [result.period for result in evaluations if isinstance(result, EvaluateResult)]
    assert len(set(periods)) == 1


def test_the_session_could_have_changed_the_tables(workspaces: dict[str, Workspace]) -> None:
    """The inputs hold rows of every kind whose reading depends on the session's zone by default."""
    reference = workspaces[REFERENCE[0]]
    reasons = {row["reason"] for row in rows(reference.root, "quarantine")}
    assert {
        "event_time does not exist in Europe/Berlin",
        "event_time is missing or not a time",
        "rule in_this_year",
    } <= reasons
    statuses = {row["source"] for row in rows(reference.root, "events")}
    assert {"call", "visit", "shop", "mailing", "response"} <= statuses
    (quarantined, *_) = [row["raw"] for row in rows(reference.root, "quarantine") if "2100" in row["raw"]]
    assert json.loads(quarantined)["event_time"] == "2100-01-01T00:00:00.000Z"
