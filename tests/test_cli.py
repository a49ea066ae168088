"""The command line, without a Spark session: wrong arguments, help, dry run, exit codes."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lam_spark import __version__, cli
from lam_spark.cli import main
from lam_spark.runtime import runner
from lam_spark.runtime.results import StageResult
from lam_spark.stages import NIGHTLY, STAGES
from lam_spark.training.launch import launchers as launch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHIPPED = str(Path(__file__).parents[1] / "conf" / "complete_journey.yaml")
Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object on the last line of stdout, and stderr."""
    code = main(arguments)
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary["exit_code"] == code
    return code, summary, err


def test_the_error_for_an_unknown_stage_suggests_the_nearest_name(capsys: Capture) -> None:
    code, summary, err = call(capsys, "trian", "--conf", SHIPPED)
    assert code == 2
    assert summary["status"] == "failed"
    assert summary["error"] == "unknown stage 'trian': did you mean 'train'?"
    assert err == "lam-spark trian: ConfigError: unknown stage 'trian': did you mean 'train'?\n"


def test_the_error_for_an_unknown_stage_without_a_similar_name_lists_all_stages(capsys: Capture) -> None:
    _, summary, _ = call(capsys, "xyzzy")
    all_stages = ", ".join(STAGES)
    assert summary["error"] == f"unknown stage 'xyzzy': expected run or one of {all_stages}"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run"], "the following arguments are required: --conf"),
        (["run", "--conf", SHIPPED, "--fast"], "unrecognized arguments: --fast"),
        (["run", "--con", SHIPPED], "the following arguments are required: --conf"),
        (["run", "--conf", SHIPPED, "--set"], "argument --set: expected one argument"),
    ],
)
def test_the_error_for_a_wrong_flag_lists_the_valid_flags(
    capsys: Capture, arguments: list[str], error: str
) -> None:
    code, summary, _ = call(capsys, *arguments)
    assert code == 2
    assert summary["error"] == f"{error} (flags: --conf FILE --as-of DATE --set key=value --dry-run)"


def test_a_missing_configuration_is_a_configuration_error(capsys: Capture, tmp_path: Path) -> None:
    code, summary, _ = call(capsys, "run", "--conf", str(tmp_path / "none.yaml"))
    assert code == 2
    assert summary["error"] == f"expected a configuration file at {tmp_path / 'none.yaml'}, found none"


@pytest.mark.parametrize("stage", ["run", *STAGES])
def test_every_stage_has_exactly_these_flags(capsys: Capture, stage: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([stage, "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert flags == {"--help", "--conf", "--as-of", "--set", "--dry-run"}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_stage_in_order(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 0
    listed = re.findall(r"^  (\w+) +\w.+$", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(STAGES)


def test_the_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lam-spark {__version__}\n"


def test_run_does_not_include_embed(capsys: Capture, tmp_path: Path) -> None:
    flags = ("--conf", SHIPPED, "--dry-run", "--set", f"root={tmp_path / 'root'}")
    assert call(capsys, "embed", *flags)[1]["stages"] == ["embed"]
    assert "embed" not in call(capsys, "run", *flags)[1]["stages"]


def test_without_a_secret_no_stage_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAM_SPARK_SECRET", raising=False)
    root = tmp_path / "workspace"
    code, summary, _ = call(capsys, "run", "--conf", str(SHIPPED), "--set", f"root={root}")
    assert (code, summary["exit_code"]) == (2, 2)
    assert "LAM_SPARK_SECRET" in summary["error"]
    assert not root.exists()


@pytest.mark.parametrize(("launcher", "program"), [("horovod", "horovodrun"), ("torch", "torchrun")])
def test_without_the_training_launcher_no_stage_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, program: str
) -> None:
    monkeypatch.setenv("LAM_SPARK_SECRET", "0" * 64)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    root = tmp_path / "workspace"
    flags = ("--set", f"root={root}", "--set", f"training.launcher={launcher}")
    code, summary, _ = call(capsys, "run", "--conf", str(SHIPPED), *flags)
    assert code == 5
    assert f"expected {program} at {tmp_path / program}" in summary["error"]
    assert not root.exists()


def test_a_dry_run_prints_stages_and_resolved_configuration(capsys: Capture, tmp_path: Path) -> None:
    root = tmp_path / "root"
    code, plan, _ = call(
        capsys, "run", "--conf", SHIPPED, "--dry-run", "--as-of", "2017-03-13", "--set", f"root={root}",
        "--set", "training.world_size=1",
    )  # fmt: skip
    assert code == 0
    assert plan["status"] == "done"
    assert plan["stages"] == list(NIGHTLY)
    assert plan["root"] == str(root)
    assert plan["as_of"] == "2017-03-13T04:00:00+00:00"
    assert plan["config"]["training"]["world_size"] == 1
    assert not root.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_not_import_the_session_and_prints_one_line(tmp_path: Path) -> None:
    script = (
        "import sys; from lam_spark.cli import main; code = main(sys.argv[1:]); "
        "assert 'lam_spark.runtime.session' not in sys.modules; sys.exit(code)"
    )
    arguments = ["train", "--conf", SHIPPED, "--dry-run", "--set", f"root={tmp_path / 'root'}"]
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert [json.loads(line)["stages"] for line in completed.stdout.splitlines()] == [["train"]]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_exits_with_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    code, summary, err = call(capsys, "run", "--conf", SHIPPED)
    assert (code, summary["status"], "error" in summary) == (130, "interrupted", False)
    assert err == "lam-spark run: interrupted; the last good tables are unchanged\n"


@pytest.mark.parametrize("show_values", ["", "1"], ids=["by default", "with values shown"])
def test_an_unexpected_error_ends_with_what_to_do_and_how_to_see_its_text(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, show_values: str
) -> None:
    text = "No space left on device: customer 17"

    def full(*arguments: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, text)

    monkeypatch.setattr(cli, "_run", full)
    monkeypatch.setenv("LAM_SPARK_SHOW_VALUES", show_values)
    code, summary, err = call(capsys, "run", "--conf", SHIPPED)
    assert (code, summary["status"]) == (1, "failed")
    assert summary["error"].startswith("OSError [ENOSPC]. A disk is full: free space below root")
    assert ("customer 17" in err) is bool(show_values)
    error = f"lam-spark run: {summary['error']}\n"
    hint = "The text of this error may quote a customer's row: LAM_SPARK_SHOW_VALUES=1 shows it\n"
    assert err.endswith(error if show_values else error + hint)


def test_warnings_are_printed_and_are_in_the_summary(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Warned(StageResult):
        warnings = ("reply: the model is behind its baseline",)

    monkeypatch.setattr(runner, "run_stages", lambda *_, **__: {"evaluate": Warned()})
    assert main(["evaluate", "--conf", SHIPPED]) == 0
    warning, summary = capsys.readouterr().out.splitlines()
    assert warning == "evaluate: reply: the model is behind its baseline"
    assert json.loads(summary)["warnings"] == [warning]
