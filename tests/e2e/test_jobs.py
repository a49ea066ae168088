"""Every main job runs under spark-submit; job files hold nothing but the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lam_spark.stages import NIGHTLY, STAGES
from tests.support.runs import REPOSITORY, rows_without_run, versions
from tests.support.shop import ONE_TARGET
from tests.support.submit import submit

if TYPE_CHECKING:
    from tests.support.shop import DataSet

# The jobs `run` and `deliver` have tests of their own.
MAIN = ("ingest", "consent", "sequences", "train", "score", "evaluate")
QUICK_TRAINING = ("training.launcher=in_process", "training.world_size=1", "training.finetune_epochs=1")
FLAGS = [flag for setting in QUICK_TRAINING for flag in ("--set", setting)]


def test_there_is_a_job_for_run_and_for_every_stage_and_no_other() -> None:
    jobs = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")}
    assert jobs == {"run", *STAGES}


@pytest.mark.parametrize("name", ["run", *STAGES])
def test_a_job_is_at_most_five_lines_around_the_same_call(name: str) -> None:
    lines = (REPOSITORY / "jobs" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip()]
    assert len(code) <= 5
    assert code[-1] == f'sys.exit(run_job("{name}"))'


@pytest.fixture(scope="module")
def data(make_data_set: Callable[..., DataSet], tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """The small shop, after the nightly job."""
    data = make_data_set(tmp_path_factory.mktemp("jobs") / "shop", customers=120, targets=ONE_TARGET)
    summary = submit("run", data.conf, *FLAGS)
    assert (summary["status"], tuple(summary["stages"])) == ("done", NIGHTLY)
    assert Path(summary["report"]).is_file()
    return data


@pytest.mark.long
def test_a_submitted_delivery_writes_the_same_list(data: DataSet) -> None:
    before, version = rows_without_run(data.root, "contact_list"), versions(data.root)["contact_list"]
    summary = submit("deliver", data.conf)
    assert (summary["stage"], summary["stages"]["deliver"]["delivered"]) == ("deliver", len(before))
    # One commit withdraws the list of before, one writes the new list.
    assert versions(data.root)["contact_list"] == version + 2
    assert rows_without_run(data.root, "contact_list") == before != []


@pytest.mark.long
@pytest.mark.parametrize("name", MAIN)
def test_a_main_job_runs_under_spark_submit(data: DataSet, name: str) -> None:
    summary = submit(name, data.conf, *FLAGS)
    assert (summary["stage"], summary["status"], tuple(summary["stages"])) == (name, "done", (name,))
