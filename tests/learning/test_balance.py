"""Partitions are pure functions: compared with drawings, and with trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import balance, cut_segments, members, shares
from pipeline.network.spec import BlockShape


@pytest.mark.parametrize(
    ("costs", "stages", "split"),
    [
        ([4, 1, 1, 4, 2], 3, (2, 2, 1)),  # 4 1 | 1 4 | 2
        ([1, 1, 1, 1], 2, (2, 2)),
        ([10, 1, 1, 1], 2, (1, 3)),
        ([1, 1, 1, 10], 2, (3, 1)),
        ([5], 1, (1,)),
        ([1, 2, 3], 3, (1, 1, 1)),
        ([0, 0, 0, 0], 3, (1, 1, 2)),
    ],
)
def test_balance_makes_the_most_expensive_stage_cheap(costs: list[float], stages: int, split: tuple[int, ...]) -> None:
    assert balance(costs, stages) == split


def test_balance_is_as_good_as_trying_every_split() -> None:
    draw = random.Random(1)
    for _ in range(60):
        costs = [draw.random() for _ in range(draw.randint(1, 9))]
        stages = draw.randint(1, len(costs))
        cuts = itertools.combinations(range(1, len(costs)), stages - 1)
        best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cut, len(costs)))) for cut in cuts)
        split = balance(costs, stages)
        assert max(sum(costs[i] for i in blocks) for blocks in members(split)) == pytest.approx(best)
        assert sum(split) == len(costs) and min(split) >= 1


def test_members_and_shares_follow_the_split() -> None:
    assert members((3, 2)) == [(0, 1, 2), (3, 4)]
    assert shares([1, 1, 2, 2, 2], (3, 2)) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("segments", "first", "expected"),
    [(2, None, (2, 3)), (2, 1, (2, 3)), (2, 3, (3, 2)), (3, 2, (2, 1, 2)), (2, 4, (4, 1)), (3, 3, (3, 1, 1))],
)
def test_the_first_cut_comes_no_earlier_than_asked_for(
    segments: int, first: int | None, expected: tuple[int, ...]
) -> None:
    shapes = [BlockShape((1,), (1,), (1,), macs) for macs in (4, 3, 3, 2, 2)]
    config = TrainConfig(loss="pred", segments=segments, first_cut_after=first)
    assert cut_segments(config, shapes) == expected
