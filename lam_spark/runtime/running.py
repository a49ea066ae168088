"""The stage that runs now, in a file: after a kill, the next run appends its audit entry."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lam_spark.errors import AuditError
from lam_spark.storage.files import write_atomically

KILLED = "killed: the run ended before the audit entry of this stage was written"


@dataclass(frozen=True)
class RunningStage:
    """A stage that has started, as its audit entry describes it.

    Attributes:
        run_id: Its run.
        stage: Name of the stage.
        started_at: ISO instant.
        as_of: ISO date of the run's configuration.
        lam_spark: Version of this package.
        git_commit: Commit of the code.
        config_digest: Digest of the configuration.
        config: The resolved configuration as JSON values.
        error: Error of the entry that the next run appends: that of the stage, if only its entry is missing.
    """

    run_id: str
    stage: str
    started_at: str
    as_of: str
    lam_spark: str
    git_commit: str
    config_digest: str
    config: dict[str, Any]
    error: str = KILLED

    def write(self, path: Path) -> None:
        """Write or replace the file."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), sort_keys=True))

    @classmethod
    def read(cls, path: Path) -> RunningStage | None:
        """Read the file; None if there is none: the last run was not killed during a stage.

        Raises:
            AuditError: Another version of lam_spark wrote it.
        """
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise AuditError(
                f"expected the stage of a killed run in {path}, as this version of lam_spark writes it; found another "
                "content. Run a stage with the version that wrote it, or delete the file: the audit then lacks an entry"
            ) from error
