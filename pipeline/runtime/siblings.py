"""The processes that torchrun has started on this host, before they can talk: which has died, or stands. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.environment import Environment

__all__ = ["death", "describe", "missing", "stopped"]


def describe(rank: int) -> str:
    """A process for people, where there are several: each runs the stage of its number."""
    return f"stage {rank} (process {rank})"


def missing(where: Environment, root: Path = Path("/proc")) -> set[int] | None:
    """The processes of this host that have ended; None where nobody can tell.

    Of use when torchrun ends this process because of another one: by then it has buried that one.
    """
    here = _of_this_host(where)
    states = list(_children(os.getppid(), root))
    living = {rank for rank, _ in states}
    if not here or where.rank not in living or any(state == "Z" for _, state in states):
        return None  # of one that has ended and was not buried the rank is not known
    return here - living


def death(where: Environment, gone: set[int] | None) -> tuple[int, int] | None:
    """The process that has died, and the one to tell of it: the first of those that are left.

    None where more than one is gone: those that were told to end are not dead.
    """
    if gone is None or len(gone) != 1:
        return None
    return next(iter(gone)), min(_of_this_host(where) - gone)


def stopped(where: Environment, root: Path = Path("/proc")) -> set[int]:
    """The processes that somebody has stopped (SIGSTOP, or a debugger)."""
    if where.local_rank is None:
        return set()
    return {rank for rank, state in _children(os.getppid(), root) if rank is not None and state in "Tt"}


def _of_this_host(where: Environment) -> set[int]:
    """Its processes; none where nobody has said."""
    if where.local_rank is None or where.local_world_size is None:
        return set()
    return set(range(where.first_here, where.first_here + where.local_world_size))


def _children(parent: int, root: Path) -> Iterator[tuple[int | None, str]]:
    """Ranks and states of a process's children; None for one that has ended, and for what is no process of a run."""
    for entry in root.glob("[0-9]*"):
        try:
            state, its_parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(its_parent) != parent:
                continue
            rank = None
            if state != "Z":
                rank = re.search(rb"(?:^|\0)RANK=(\d+)(?:\0|$)", (entry / "environ").read_bytes())
        except (OSError, ValueError):  # it has ended meanwhile, or is somebody else's
            continue
        yield (int(rank[1]) if rank else None), state
