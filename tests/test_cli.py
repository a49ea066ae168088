"""The command line where no Spark session starts: wrong words, and the dry run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lam_spark import __version__, cli
from lam_spark.cli import ON_REQUEST, STAGES, main
from lam_spark.runtime.context import StageResult
from lam_spark.runtime.log import Journal
from lam_spark.training.launch import launchers as launch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHIPPED = str(Path(__file__).parents[1] / "conf" / "complete_journey.yaml")
Capture = pytest.CaptureFixture[str]


def outcome(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object on the last line of stdout, and stderr."""
    code = main(arguments)
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary["exit_code"] == code
    return code, summary, err


def test_an_unknown_stage_names_the_nearest(capsys: Capture) -> None:
    code, summary, err = outcome(capsys, "trian", "--conf", SHIPPED)
    assert code == 2
    assert summary["status"] == "failed"
    assert summary["error"] == "unknown stage 'trian': did you mean 'train'?"
    assert err == "lam-spark trian: ConfigError: unknown stage 'trian': did you mean 'train'?\n"


def test_a_stage_like_no_other_lists_them_all(capsys: Capture) -> None:
    _, summary, _ = outcome(capsys, "xyzzy")
    every = ", ".join([*STAGES, *ON_REQUEST])
    assert summary["error"] == f"unknown stage 'xyzzy': expected run or one of {every}"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run"], "the following arguments are required: --conf"),
        (["run", "--conf", SHIPPED, "--fast"], "unrecognized arguments: --fast"),
        (["run", "--con", SHIPPED], "the following arguments are required: --conf"),
        (["run", "--conf", SHIPPED, "--set"], "argument --set: expected one argument"),
    ],
)
def test_wrong_flags_are_refused_with_the_right_ones(
    capsys: Capture, arguments: list[str], error: str
) -> None:
    code, summary, _ = outcome(capsys, *arguments)
    assert code == 2
    assert summary["error"] == f"{error} (flags: --conf FILE --as-of DATE --set key=value --dry-run)"


def test_a_missing_configuration_is_a_configuration_error(capsys: Capture, tmp_path: Path) -> None:
    code, summary, _ = outcome(capsys, "run", "--conf", str(tmp_path / "none.yaml"))
    assert code == 2
    assert summary["error"] == f"expected a configuration file at {tmp_path / 'none.yaml'}, found none"


@pytest.mark.parametrize("stage", ["run", *STAGES, *ON_REQUEST])
def test_every_stage_has_these_flags_and_no_other(capsys: Capture, stage: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([stage, "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert flags == {"--help", "--conf", "--as-of", "--set", "--dry-run"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_stage_in_order(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 0
    listed = re.findall(r"^  (\w+) +\w.+$", capsys.readouterr().out, re.MULTILINE)
    assert listed == [*STAGES, *ON_REQUEST]


def test_the_version_is_told(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lam-spark {__version__}\n"


def test_vectors_are_made_only_when_they_are_asked_for(capsys: Capture, tmp_path: Path) -> None:
    given = ("--conf", SHIPPED, "--dry-run", "--set", f"root={tmp_path / 'root'}")
    assert outcome(capsys, "embed", *given)[1]["stages"] == ["embed"]
    assert "embed" not in outcome(capsys, "run", *given)[1]["stages"]


def test_without_a_secret_no_stage_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAM_SPARK_SECRET", raising=False)
    root = tmp_path / "workspace"
    code, summary, _ = outcome(capsys, "run", "--conf", str(SHIPPED), "--set", f"root={root}")
    assert (code, summary["exit_code"]) == (2, 2)
    assert "LAM_SPARK_SECRET" in summary["error"]
    assert not root.exists()


@pytest.mark.parametrize(("launcher", "program"), [("horovod", "horovodrun"), ("torch", "torchrun")])
def test_without_its_launcher_no_training_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, program: str
) -> None:
    """Nor do the stages before it, which take longer."""
    monkeypatch.setenv("LAM_SPARK_SECRET", "0" * 64)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    root = tmp_path / "workspace"
    given = ("--set", f"root={root}", "--set", f"training.launcher={launcher}")
    code, summary, _ = outcome(capsys, "run", "--conf", str(SHIPPED), *given)
    assert code == 5
    assert f"expected {program} at {tmp_path / program}" in summary["error"]
    assert not root.exists()


def test_a_dry_run_shows_the_plan_of_the_resolved_run(capsys: Capture, tmp_path: Path) -> None:
    root = tmp_path / "root"
    code, plan, _ = outcome(
        capsys, "run", "--conf", SHIPPED, "--dry-run", "--as-of", "2017-03-13", "--set", f"root={root}",
        "--set", "training.world_size=1",
    )  # fmt: skip
    assert code == 0
    assert plan["status"] == "done"
    assert plan["stages"] == list(STAGES)
    assert plan["root"] == str(root)
    assert plan["as_of"] == "2017-03-13T04:00:00+00:00"
    assert plan["config"]["training"]["world_size"] == 1
    assert not root.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_one_stage_imports_no_session_and_says_one_line(tmp_path: Path) -> None:
    script = (
        "import sys; from lam_spark.cli import main; code = main(sys.argv[1:]); "
        "assert 'lam_spark.runtime.session' not in sys.modules; sys.exit(code)"
    )
    arguments = ["train", "--conf", SHIPPED, "--dry-run", "--set", f"root={tmp_path / 'root'}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["stages"] for line in done.stdout.splitlines()] == [["train"]]
    assert list(tmp_path.iterdir()) == []


# Name, seconds, memory and what the stage says, in columns.
LINE = re.compile(r"✓ (\S+) *(?<=^.{12}) ( *\d+\.\d) s ( *\d+\.\d) GiB  (\S.*)")


class Tables:
    """Tables whose small files can be joined, and one where that fails; notes what is done in which order."""

    def __init__(self) -> None:
        self.read_versions: dict[str, int] = {"of": 1, "an earlier stage": 2}
        self.written_versions: dict[str, int] = {"of an earlier stage": 3}
        self.done: list[str] = []

    def append(self, stage: str, *rest: Any) -> None:
        """As the audit's chain does it."""
        self.done.append(f"record of {stage}")
        self.written_versions["audit"] = 7

    def compact(self, name: str) -> int:
        self.done.append(f"compact {name}")
        if name == "quarantine":
            raise OSError("the disk is full: RAW-CUSTOMER-000123")
        return {"events": 33}.get(name, 0)


@pytest.fixture
def one_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Tables, StageResult | BaseException], None]:
    """Does the stage `ingest`, which writes two tables and ends so, as `lam-spark` does it, for people."""
    monkeypatch.setenv("LAM_SPARK_LOG", "human")
    monkeypatch.setenv("COLUMNS", "40")
    tracker = SimpleNamespace(getActiveStageIds=lambda: [])
    spark = SimpleNamespace(sparkContext=SimpleNamespace(statusTracker=lambda: tracker))

    def do(tables: Tables, end: StageResult | BaseException) -> None:
        def ingest(run: Any) -> StageResult:
            run.tables.written_versions |= {"quarantine": 1, "events": 1}
            if isinstance(end, BaseException):
                raise end
            return end

        monkeypatch.setattr("lam_spark.events.stage.run", ingest)
        journal = Journal("r1", tmp_path)
        run: Any = SimpleNamespace(tables=tables, spark=spark, journal=journal)
        chain: Any = tables
        try:
            cli._one_stage(run, chain, "ingest")
        finally:
            journal.close()

    return do


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    """What the log of the run `r1` tells of an event, without its time."""
    lines = (folder / "r1.jsonl").read_text(encoding="utf-8").splitlines()
    found = [record for record in map(json.loads, lines) if record["event"] == event]
    return [{k: v for k, v in record.items() if k not in ("at", "run_id", "event")} for record in found]


def test_people_see_a_line_a_stage_as_the_readme_shows_it(capsys: Capture, one_stage: Any) -> None:
    one_stage(Tables(), StageResult("5 events of [red] and [/] others", facts={"lines": ["", "AUC: [0.8]"]}))
    out, err = capsys.readouterr()
    line, *below = err.splitlines()
    assert (found := LINE.fullmatch(line))
    assert (found[1], len(found[2]), len(found[3])) == ("ingest", 6, 5)
    assert found[4] == "5 events of [red] and [/] others"  # nothing that a stage says is markup
    assert [text.rstrip() for text in below] == ["", "  AUC: [0.8]"]
    assert out == ""
    shown = [LINE.fullmatch(text) for text in README.splitlines() if text.startswith("✓")]
    assert [match and (match[1], len(match[2]), len(match[3])) for match in shown] == [
        (name, 6, 5) for name in STAGES
    ]


def test_small_files_are_joined_once_a_stage_is_on_record(one_stage: Any, tmp_path: Path) -> None:
    """In all tables that it wrote, the audit among them; where that fails, the stage is done all the same."""
    tables = Tables()
    one_stage(tables, StageResult("5 events"))
    assert tables.done == ["record of ingest", "compact quarantine", "compact events", "compact audit"]
    assert records(tmp_path, "small files joined") == [{"level": "info", "table": "events", "files": 33}]
    assert records(tmp_path, "small files not joined") == [
        {"level": "warning", "table": "quarantine", "error": "OSError"}
    ]
    assert "RAW-CUSTOMER" not in (tmp_path / "r1.jsonl").read_text()


@pytest.mark.parametrize("error", [ValueError("RAW-CUSTOMER-000123"), KeyboardInterrupt()])
def test_a_stage_that_fails_is_on_record_and_tidies_nothing(
    capsys: Capture, one_stage: Any, tmp_path: Path, error: BaseException
) -> None:
    tables = Tables()
    with pytest.raises(type(error)) as raised:
        one_stage(tables, error)
    assert raised.value is error
    assert tables.done == ["record of ingest"]
    (failed,) = records(tmp_path, "stage failed")
    assert (failed["level"], failed["stage"], failed["error"]) == ("error", "ingest", type(error).__name__)
    assert records(tmp_path, "stage done") == records(tmp_path, "small files joined") == []
    assert capsys.readouterr().err == ""


def test_an_interruption_ends_with_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_execute", interrupted)
    code, summary, err = outcome(capsys, "run", "--conf", SHIPPED)
    assert (code, summary["status"], "error" in summary) == (130, "interrupted", False)
    assert err == "lam-spark run: interrupted; the last good tables stand\n"
