"""The workspace lock, tested with separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lam_spark.errors import ConcurrentRunError, ConfigError
from lam_spark.runtime.lock import workspace_lock

HOLD = """
import sys
from pathlib import Path
from lam_spark.runtime.lock import workspace_lock
with workspace_lock(Path(sys.argv[1]), "the-other-run"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that locks `tmp_path` until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_locked_workspace_is_refused_and_the_error_names_the_holder(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(ConcurrentRunError) as raised, workspace_lock(tmp_path, "this-run"):
        pass
    assert str(raised.value) == (
        f'another run holds the workspace {tmp_path}: {{"run_id": "the-other-run", "pid": {holder.pid}, "host": '
        f'"{os.uname().nodename}"}}. Wait for it, or use another root'
    )


def test_a_refused_run_does_not_release_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(ConcurrentRunError, match="the-other-run"),
            workspace_lock(tmp_path, "this-run"),
        ):
            pass


def test_a_killed_process_releases_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    assert holder.wait() == -9
    with workspace_lock(tmp_path, "this-run"):
        assert "this-run" in (tmp_path / ".lock").read_text()


def test_a_finished_process_releases_the_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.communicate("")
    assert holder.returncode == 0
    with workspace_lock(tmp_path, "this-run"):
        pass


def test_the_lock_creates_the_folder_and_is_released_after_an_error(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), workspace_lock(root, "first"):
        raise ZeroDivisionError
    with workspace_lock(root, "second"):
        assert "first" not in (root / ".lock").read_text()


def test_another_workspace_is_not_locked(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with workspace_lock(tmp_path / "other", "this-run"):
        pass


def test_a_root_that_cannot_be_created_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    root = tmp_path / "file" / "root"
    with pytest.raises(ConfigError) as raised, workspace_lock(root, "this-run"):
        pass
    assert str(raised.value) == (
        f"expected a writable folder at root = {root}: Not a directory; set another with --set root=PATH"
    )
