"""torchrun's variables: where it put this process."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Environment", "environment"]


@dataclass(frozen=True)
class Environment:
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def environment() -> Environment:
    """Read torchrun's variables; without them this is the only process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    return Environment(
        rank, world_size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    )
