"""Files on a local disk: who may read them, atomic writes, and JSON lines whose writer may have been killed.

Lists, reports, logs, checkpoints and raw files hold personal data. Inside of `private_files` this process and the
processes that it starts create them with the configured permissions. Permissions of object stores are not set here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lam_spark.errors import ConfigError

_umask_lock = threading.Lock()
# How many contexts of `private_files` are open, and the umask from before the first.
_open_contexts = 0
_umask_before = 0


@contextlib.contextmanager
def private_files(mode: int) -> Iterator[None]:
    """Inside, this process and its children create files with these permissions at most; folders with `x` for `r`.

    Sets the umask, which belongs to the whole process, and restores it at the end of the outermost context.

    Args:
        mode: Permission bits of a file, such as 0o640.
    """
    global _open_contexts, _umask_before
    with _umask_lock:
        previous = os.umask(0o777 & ~(mode | (mode & 0o444) >> 2))
        if _open_contexts == 0:
            _umask_before = previous
        _open_contexts += 1
    try:
        yield
    finally:
        with _umask_lock:
            _open_contexts -= 1
            if _open_contexts == 0:
                os.umask(_umask_before)


def current_umask() -> int:
    """Permission bits that new files and folders of this process do not get."""
    with _umask_lock:
        umask = os.umask(0o077)
        os.umask(umask)
    return umask


def restrict(path: Path) -> None:
    """Give a file that another process wrote the permissions of one that this process writes."""
    os.chmod(path, 0o666 & ~current_umask())


def share_with_group(folder: Path, group: str) -> None:
    """Give a folder to a group; files and folders that are created in it later inherit the group.

    Raises:
        ConfigError: The group does not exist, or this user may not give the folder to it.
    """
    try:
        if folder.group() == group and folder.stat().st_mode & stat.S_ISGID:
            return
        shutil.chown(folder, group=group)
        os.chmod(folder, folder.stat().st_mode | stat.S_ISGID)
    except (LookupError, OSError) as error:
        raise ConfigError(
            f"files_group: {folder} cannot be given to the group {group!r} ({type(error).__name__}): expected an "
            "existing group of which this user is a member, and a folder that this user owns"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file so that a reader sees the old content or the new one, never a part.

    The content is synced to disk before the rename; a missing folder is created.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        restrict(Path(draft))
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without line end: its writer was killed, and the next record must not join it."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Complete records of a JSON-lines file, without a torn last line; an absent file has none."""
    if not path.exists():
        return []
    drop_torn_line(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
