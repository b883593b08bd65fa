"""The processes that torchrun has started on this host: which of them died before they could talk. Without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.config.environment import Environment

__all__ = ["death"]


def death(where: Environment, root: Path = Path("/proc")) -> tuple[int, int] | None:
    """The process that has died, and the one to tell of it: the first of those that are left.

    Of use when torchrun ends this process: by then it has buried the one that died, and no other. None where all are
    there; and where more have ended than one, since those that were told to are not dead.
    """
    if where.local_rank is None or where.local_world_size is None:
        return None
    first = where.rank - where.local_rank
    here = set(range(first, first + where.local_world_size))
    living = _children(os.getppid(), root)
    gone = here - living
    return (gone.pop(), min(here & living)) if where.rank in living and len(gone) == 1 else None


def _children(parent: int, root: Path) -> set[int]:
    """Ranks of a process's children; none where one of them has ended and was not buried, whose rank nobody knows."""
    ranks = set()
    for entry in root.glob("[0-9]*"):
        try:
            state, its_parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(its_parent) != parent:
                continue
            if state == "Z":
                return set()
            rank = re.search(rb"(?:^|\0)RANK=(\d+)(?:\0|$)", (entry / "environ").read_bytes())
        except (OSError, ValueError):  # it has ended meanwhile, or is somebody else's
            continue
        if rank:
            ranks.add(int(rank[1]))
    return ranks
