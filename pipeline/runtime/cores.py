"""The cores of this host: how many a process may use, how the processes of a run share them, and staying on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.learning.cores import Host
from pipeline.runtime.control_groups import control_groups

__all__ = ["Seat", "hosts_of", "own_cores", "seat", "staying_on"]


@dataclass(frozen=True)
class Seat:
    """Where a process runs.

    Attributes:
        host: its name.
        mask: cores that the system lets it run on.
        count: how many of them it may keep busy: fewer where a container has a quota.
    """

    host: str
    mask: tuple[int, ...]
    count: int


def seat(root: Path = Path("/")) -> Seat:
    """Of this process; `root` is where the system's files are."""
    mask = tuple(sorted(os.sched_getaffinity(0)))
    quota = _quota(root)
    return Seat(os.uname().nodename, mask, len(mask) if quota is None else max(1, min(len(mask), int(quota))))


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control groups of this process allow; None is no limit."""
    return min((limit for folder in control_groups("cpu", root) for limit in _limit(folder)), default=None)


def _limit(folder: Path) -> list[float]:
    """What one control group allows, of either version; empty without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
            )
        return [] if quota == "max" or int(quota) < 0 or int(period) < 1 else [int(quota) / int(period)]
    except (OSError, ValueError, OverflowError):
        return []


def hosts_of(seats: Sequence[Seat]) -> list[Host]:
    """Who shares cores with whom, in order of rank: one that was pinned apart from its neighbours shares none."""
    hosts = []
    for _, group in groupby(seats, key=lambda one: one.host):
        mates = list(group)
        if len({mate.mask for mate in mates}) > 1:
            hosts += [Host(1, mate.count) for mate in mates]
        else:
            hosts.append(Host(len(mates), mates[0].count))
    return hosts


def own_cores(seats: Sequence[Seat], threads: Sequence[int], rank: int) -> tuple[int, ...]:
    """The cores that a process keeps to: as many as it has threads, none of them a neighbour's.

    All of its mask where it was pinned by somebody else, where there are fewer cores than threads, and where a quota
    allows fewer cores than there are: which of them are free is the system's to say then.
    """
    mine = seats[rank]
    mates = [other for other, one in enumerate(seats) if one.host == mine.host]
    shared = {seats[other].mask for other in mates} == {mine.mask} and mine.count == len(mine.mask)
    if not shared or sum(threads[other] for other in mates) > mine.count:
        return mine.mask
    start = sum(threads[other] for other in mates if other < rank)
    return mine.mask[start : start + threads[rank]]


@contextmanager
def staying_on(cores: Sequence[int]) -> Iterator[None]:
    """Keep this thread, and those that it starts, to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
