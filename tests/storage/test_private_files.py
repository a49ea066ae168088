"""Permissions of the files that a run writes, also by the processes that it starts."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lam_spark.errors import ConfigError
from lam_spark.storage.files import current_umask, private_files, share_with_group, write_atomically


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The umask of most systems."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


@pytest.mark.parametrize(
    ("bits", "file_mode", "folder_mode"),
    [(0o600, "0600", "0700"), (0o640, "0640", "0750"), (0o660, "0660", "0770")],
)
def test_files_and_folders_get_the_configured_permissions(
    tmp_path: Path, bits: int, file_mode: str, folder_mode: str
) -> None:
    with private_files(bits):
        write_atomically(tmp_path / "folder" / "report.html", "text")
        (tmp_path / "folder" / "log").touch()
        subprocess.run(["touch", str(tmp_path / "folder" / "by a child")], check=True)
    assert {mode(path) for path in (tmp_path / "folder").iterdir()} == {file_mode}
    assert mode(tmp_path / "folder") == folder_mode


def test_the_umask_is_restored_when_the_last_of_two_runs_ends(tmp_path: Path) -> None:
    """Two runs in threads of one process, of which the first to begin ends first."""
    begun, may_end = threading.Event(), threading.Event()

    def second() -> None:
        with private_files(0o600):
            begun.set()
            may_end.wait(10)

    thread = threading.Thread(target=second)
    with private_files(0o600):
        thread.start()
        begun.wait(10)
    assert current_umask() == 0o077
    may_end.set()
    thread.join()
    assert current_umask() == 0o022


def test_a_replaced_file_is_private_again(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    with private_files(0o600):
        write_atomically(tmp_path / "report.html", "new")
    assert mode(tmp_path / "report.html") == "0600"


def test_a_folder_is_given_to_a_group_that_new_files_inherit(tmp_path: Path) -> None:
    group = tmp_path.group()
    share_with_group(tmp_path, group)
    share_with_group(tmp_path, group)  # nothing left to do
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "folder").stat().st_mode & stat.S_ISGID
    with pytest.raises(ConfigError, match=r"files_group: .* cannot be given to the group 'no such group'"):
        share_with_group(tmp_path, "no such group")
