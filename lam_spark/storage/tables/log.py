"""The transaction log of a Delta table: the only module that reads `_delta_log`.

Listing the folder takes milliseconds where asking Spark for a table's history takes about a second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lam_spark.errors import DataQualityError

# Commits that change properties and no row.
PROPERTIES = (
    "SET TBLPROPERTIES",
    "UNSET TBLPROPERTIES",
    "ADD CONSTRAINT",
    "DROP CONSTRAINT",
    "CHANGE COLUMN",
    "UPGRADE PROTOCOL",
    "CLUSTER BY",
    "COMPUTE STATS",
)
# Commits that leave a table's rows as they are.
SAME_ROWS = ("OPTIMIZE", "REORG", "VACUUM START", "VACUUM END", *PROPERTIES)
# Commits whose changes the change feed reports row by row, or that change no row.
_IN_CHANGE_FEED = ("WRITE", "MERGE", "UPDATE", "DELETE", *SAME_ROWS)
_CHANGE_FEED = "delta.enableChangeDataFeed"
_TOKEN, _METADATA = "lam_spark_commit", "metadata"


@dataclass(frozen=True)
class OwnCommit:
    """What this package stores with each of its commits, as Delta's user metadata.

    Attributes:
        token: Unique text of the write.
        metadata: What the stage stores with it; None: nothing.
    """

    token: str
    metadata: dict[str, Any] | None

    def to_text(self) -> str:
        """As Delta's user metadata."""
        return json.dumps({_TOKEN: self.token, _METADATA: self.metadata})

    @classmethod
    def from_text(cls, text: str | None) -> OwnCommit | None:
        """The inverse; None for user metadata of another program, whatever it holds."""
        try:
            content = json.loads(text or "null")
        except ValueError:
            return None
        if not isinstance(content, dict) or content.keys() != {_TOKEN, _METADATA}:
            return None
        return cls(content[_TOKEN], content[_METADATA])


class TableLog:
    """The commits of one table.

    Args:
        folder: Folder of the table.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "_delta_log"

    def versions(self) -> list[int]:
        """Versions whose commits are in the log, in no order; empty if the table was never written."""
        return [int(file.stem) for file in self._folder.glob("*.json") if file.stem.isdigit()]

    def newest(self) -> int | None:
        """The newest version; None if the table was never written."""
        return max(self.versions(), default=None)

    def commit_info(self, version: int) -> dict[str, Any]:
        """What Delta recorded about a commit: operation, parameters, metrics, user metadata.

        Raises:
            DataQualityError: The commit holds no such record.
        """
        commit = self._folder / f"{version:020d}.json"
        for line in commit.read_text(encoding="utf-8").splitlines():
            action: dict[str, dict[str, Any]] = json.loads(line)
            if "commitInfo" in action:
                return action["commitInfo"]
        raise DataQualityError(f"commit {commit} holds no commitInfo: it does not say what was written")

    def metrics(self, version: int) -> dict[str, int]:
        """Delta's counts of a commit (rows, files)."""
        return {name: int(count) for name, count in self.commit_info(version)["operationMetrics"].items()}

    def own_commit(self, version: int) -> OwnCommit | None:
        """What this package stored with a commit; None for a commit of another program."""
        return OwnCommit.from_text(self.commit_info(version).get("userMetadata"))

    def is_foreign_write(self, version: int) -> bool:
        """Whether another program changed rows in a commit."""
        return self.own_commit(version) is None and self.commit_info(version)["operation"] not in SAME_ROWS

    def version_of(self, token: str, after: int) -> int | None:
        """The first version above `after` with this token; None: the write made no commit.

        Not simply the newest: other programs may have committed since. An automatic compaction that follows a write
        of ours bears its token too.
        """
        for version in sorted(version for version in self.versions() if version > after):
            own = self.own_commit(version)
            if own is not None and own.token == token:
                return version
        return None

    def metadata(self, version: int | None = None) -> dict[str, Any] | None:
        """Our metadata of the commit that made the rows of a version, by default the newest.

        Maintenance, changed properties and deletions of another program leave the remaining rows what they were. None:
        another program has written rows since, or our commit has no metadata.
        """
        versions = set(self.versions())
        version = max(versions, default=-1) if version is None else version
        while version in versions:
            commit = self.commit_info(version)
            own = OwnCommit.from_text(commit.get("userMetadata"))
            if commit["operation"] == "RESTORE":
                version = _restored_version(commit)
            elif commit["operation"] in SAME_ROWS or (own is None and only_deletes(commit)):
                version -= 1
            else:
                return None if own is None else own.metadata
        return None

    def history(self, after: int) -> list[int] | None:
        """Commits above version `after` that the present rows come from, oldest first.

        Commits that were rolled back are left out, and so is the RESTORE that did it. None: the log lacks a
        commit, or the present rows do not descend from version `after`.
        """
        versions = set(self.versions())
        path: list[int] = []
        version = max(versions)
        while version > after and version in versions:
            commit = self.commit_info(version)
            if commit["operation"] == "RESTORE":
                version = _restored_version(commit)
            else:
                path.append(version)
                version -= 1
        return path[::-1] if version == after and after in versions else None

    def has_same_rows_since(self, version: int) -> bool:
        """Whether no commit above a version changed a row; commits of metadata alone do not."""
        history = self.history(version)
        return history is not None and all(self._keeps_rows(commit) for commit in history)

    def _keeps_rows(self, version: int) -> bool:
        commit = self.commit_info(version)
        is_append = commit["operation"] == "WRITE" and commit["operationParameters"].get("mode") == "Append"
        rows = commit.get("operationMetrics", {}).get("numOutputRows")
        return commit["operation"] in SAME_ROWS or (is_append and rows == "0")

    def has_change_feed_since(self, version: int) -> bool:
        """Whether the change feed reports, row by row, all that happened above a version."""
        history = self.history(version)
        return history is not None and all(self._is_in_change_feed(commit) for commit in history)

    def _is_in_change_feed(self, version: int) -> bool:
        commit = self.commit_info(version)
        replaced = commit["operation"] == "WRITE" and commit["operationParameters"].get("mode") != "Append"
        switched = commit["operation"] in PROPERTIES and _CHANGE_FEED in str(commit["operationParameters"])
        return commit["operation"] in _IN_CHANGE_FEED and not replaced and not switched

    def leaves_no_small_files(self, version: int) -> bool:
        """Whether a commit left no small files of earlier ones: it compacted or overwrote the whole table."""
        commit = self.commit_info(version)
        parameters = commit["operationParameters"]
        overwrote = parameters.get("mode") == "Overwrite" and parameters.get("predicate", "[]") in ("[]", "")
        return commit["operation"] == "OPTIMIZE" or overwrote


def only_deletes(commit: Mapping[str, Any]) -> bool:
    """Whether a commit did nothing but delete rows."""
    if commit["operation"] == "DELETE":
        return True
    counts = commit.get("operationMetrics", {})
    written = ("numTargetRowsInserted", "numTargetRowsUpdated")
    return commit["operation"] == "MERGE" and all(counts.get(name) == "0" for name in written)


def _restored_version(commit: Mapping[str, Any]) -> int:
    """Version that a RESTORE brought back; -1 where it was named by a timestamp."""
    version = commit["operationParameters"].get("version")
    return -1 if version is None else int(version)
