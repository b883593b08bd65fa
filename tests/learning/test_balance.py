"""Partitions are pure functions: compared with drawings, and with trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import arithmetic_costs, balance, members, shares
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
def test_balance_makes_the_dearest_stage_cheap(costs: list[float], stages: int, split: tuple[int, ...]) -> None:
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


def test_arithmetic_costs_count_passes_and_heads() -> None:
    conv = BlockShape((3, 8, 8), (16, 8, 8), (16, 8, 8), macs=1000)
    output = BlockShape((16,), (10,), (10,), macs=160)
    head = 3 * 9 * 16 * 16 * 64
    assert arithmetic_costs(TrainConfig(loss="sim"), [conv, output], 10) == [2000 + head, 320]
    cheap = TrainConfig(loss="sim", similarity_head="pool-2")
    assert arithmetic_costs(cheap, [conv, output], 10) == [2000 + head // 4, 320]
    assert arithmetic_costs(TrainConfig(loss="glob"), [conv, output], 10) == [2000, 480]
    pred = 3 * 16 * 64 * 10
    assert arithmetic_costs(TrainConfig(loss="pred"), [conv, output], 10) == [2000 + pred, 320]
