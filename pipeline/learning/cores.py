"""Which blocks go to which process, and how many of its host's cores that gets: chosen together, from costs alone.

A stage of cost c on k cores is taken to last c / k. Equal shares waste what a split of uneven blocks leaves idle:

    costs 4 1 1 1 1, 2 stages, 8 cores       4 | 1 1 1 1   on 4 and 4 cores    1.00
    costs 9 1 1 1, 2 stages, 8 cores         9 | 1 1 1     on 4 and 4 cores    2.25
                                             9 | 1 1 1     on 6 and 2 cores    1.50
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline.learning.balance import Cut, one_more_group

__all__ = ["Host", "Shares", "share_cores"]

_SLACK = 1 + 1e-9  # a bound that was divided out must hold what it was made of


@dataclass(frozen=True)
class Host:
    """Consecutive processes of one machine, and the cores that they may use together."""

    processes: int
    cores: int


@dataclass(frozen=True)
class Shares:
    """Blocks and cores of every process, in order of rank."""

    split: tuple[int, ...]
    cores: tuple[int, ...]


def share_cores(costs: Sequence[float], hosts: Sequence[Host]) -> Shares:
    """Cut `costs` into one group a process and share out the cores so that the slowest group is as fast as can be.

    Every process has a core at least, also where there are more processes than cores. Among cuts that are as fast,
    the one that needs the fewest cores, then the most even one; with a core each it is that of `balance`. What is left
    goes one by one to the group that is the slowest then.

    Args:
        costs: of each block, or of each segment where these are not to be cut; at least as many as processes.
        hosts: in order of rank.
    """
    total = [0.0, *accumulate(costs)]
    bounds = _possible_bounds(total, max(host.cores for host in hosts))
    low, high = 0, len(bounds) - 1
    while low < high:  # the least bound that all groups can keep
        middle = (low + high) // 2
        low, high = (low, middle) if _fit(total, hosts, bounds[middle]) else (middle + 1, high)
    split = _fit(total, hosts, bounds[low])
    assert split is not None, "one core for each group always keeps the greatest bound"
    ends = list(accumulate(split, initial=0))
    works = [total[end] - total[start] for start, end in pairwise(ends)]
    shared: list[int] = []
    for host in hosts:
        mine = works[len(shared) : len(shared) + host.processes]
        shared += _deal(mine, host.cores)
    return Shares(split, tuple(shared))


def _possible_bounds(total: Sequence[float], cores: int) -> list[float]:
    """Everything that the slowest group of blocks on so many cores can last."""
    works = {total[end] - total[start] for end in range(len(total)) for start in range(end)}
    works = {work for work in works if work > 0} or works  # no share of a host's cores does any work in no time
    return sorted({work / count for work in works for count in range(1, cores + 1)})


def _fit(total: Sequence[float], hosts: Sequence[Host], bound: float) -> tuple[int, ...] | None:
    """The cut with the fewest cores whose groups all last `bound` at the most; None where the cores do not suffice."""

    def with_cores(used: float, work: float) -> float:
        return used + (1 if work <= bound else math.ceil(work / (bound * _SLACK)))

    best: dict[int, Cut] = {0: (0, 0.0, ())}
    for host in hosts:
        for _ in range(host.processes):
            best = one_more_group(best, total, with_cores)
        most = max(host.cores, host.processes)
        best = {end: (0, squares, counts) for end, (used, squares, counts) in best.items() if used <= most}
    found = best.get(len(total) - 1)
    return None if found is None else found[2]


def _deal(works: Sequence[float], cores: int) -> list[int]:
    """One core each, then one by one to the group that lasts longest."""
    shared = [1] * len(works)
    for _ in range(cores - len(works)):
        slowest = max(range(len(works)), key=lambda index: works[index] / shared[index])
        shared[slowest] += 1
    return shared
