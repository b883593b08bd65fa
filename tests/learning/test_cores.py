"""Split and cores chosen together: compared with drawings, and with trying everything."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from pipeline.learning.balance import balance, members
from pipeline.learning.cores import Host, Shares, share_cores


def slowest(costs: Sequence[float], shares: Shares) -> float:
    """What the slowest process lasts."""
    groups = members(shares.split)
    return max(sum(costs[i] for i in own) / cores for own, cores in zip(groups, shares.cores, strict=True))


def all_shares(processes: int, cores: int) -> Iterator[tuple[int, ...]]:
    """Every way to give each process a core and share out the rest."""
    for cut in itertools.combinations(range(1, max(cores, processes)), processes - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cut, max(cores, processes))))


def best_of_all(costs: Sequence[float], hosts: Sequence[Host]) -> float:
    processes = sum(host.processes for host in hosts)
    cuts = itertools.combinations(range(1, len(costs)), processes - 1)
    splits = [tuple(b - a for a, b in itertools.pairwise((0, *cut, len(costs)))) for cut in cuts]
    shared = list(itertools.product(*(list(all_shares(host.processes, host.cores)) for host in hosts)))
    return min(slowest(costs, Shares(split, tuple(itertools.chain(*each)))) for split in splits for each in shared)


@pytest.mark.parametrize(
    ("costs", "hosts", "shares"),
    [
        ([4, 1, 1, 1, 1], [Host(2, 8)], Shares((1, 4), (4, 4))),
        ([9, 1, 1, 1], [Host(2, 8)], Shares((1, 3), (6, 2))),
        ([1, 1, 1, 1], [Host(4, 2)], Shares((1, 1, 1, 1), (1, 1, 1, 1))),  # fewer cores than processes
        ([1, 1, 1, 1], [Host(4, 4)], Shares((1, 1, 1, 1), (1, 1, 1, 1))),
        ([6, 1, 1], [Host(1, 16)], Shares((3,), (16,))),
        ([3, 3, 1, 1], [Host(1, 6), Host(1, 2)], Shares((2, 2), (6, 2))),  # a core is its host's
        ([0, 0, 0], [Host(3, 6)], Shares((1, 1, 1), (4, 1, 1))),
        ([0, 1], [Host(1, 4), Host(1, 4)], Shares((1, 1), (4, 4))),  # no share of a host keeps a bound of nothing
    ],
)
def test_cores_go_where_the_work_is(costs: list[float], hosts: list[Host], shares: Shares) -> None:
    assert share_cores(costs, hosts) == shares


def test_split_and_shares_are_as_good_as_trying_everything() -> None:
    draw = random.Random(3)
    for _ in range(80):
        hosts = [Host(processes, draw.randint(1, 6)) for processes in draw.choices((1, 2, 3), k=draw.randint(1, 2))]
        processes = sum(host.processes for host in hosts)
        costs = [draw.choice((draw.random(), 5 * draw.random())) for _ in range(draw.randint(processes, 8))]
        found = share_cores(costs, hosts)
        assert slowest(costs, found) == pytest.approx(best_of_all(costs, hosts))
        assert sum(found.split) == len(costs) and min(found.split) >= 1
        assert sum(found.cores) == sum(max(host.cores, host.processes) for host in hosts) and min(found.cores) >= 1


def test_with_a_core_for_each_process_the_split_is_the_balanced_one() -> None:
    draw = random.Random(4)
    for _ in range(40):
        costs = [draw.random() for _ in range(draw.randint(2, 10))]
        processes = draw.randint(1, len(costs))
        even, shared = balance(costs, processes), share_cores(costs, [Host(processes, processes)])
        assert shared == Shares(even, (1,) * processes)


def test_a_deep_network_on_a_large_host_takes_no_time() -> None:
    costs = [1.0 + index % 7 for index in range(60)]
    shares = share_cores(costs, [Host(8, 128), Host(8, 128)])
    assert sum(shares.cores) == 256 and slowest(costs, shares) == pytest.approx(sum(costs) / 256, rel=0.15)
