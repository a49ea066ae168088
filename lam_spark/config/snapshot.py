"""Section `snapshot`: shape of the packed training blocks."""

from __future__ import annotations

from pydantic import Field

from lam_spark.config.base import Section


class SnapshotConfig(Section):
    """Shape of the packed training blocks. A block has `model.context_events` event slots."""

    queries_per_block: int = Field(default=32, ge=1, description="query slots per block")
    blocks_per_file: int = Field(
        default=2048, ge=1, description="most blocks per file; a process holds one file in memory"
    )
    files: int = Field(
        default=4,
        ge=1,
        description="least files per kind of block, at least `training.world_size`",
    )
