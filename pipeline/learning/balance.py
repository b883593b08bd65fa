"""Which blocks make a segment, which go to which stage: pure functions of costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from pipeline.config.method import Method
from pipeline.network.spec import BlockShape

__all__ = ["Cut", "balance", "cut_segments", "members", "one_more_group", "segment_ends", "shares"]


def balance(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Blocks of each stage: `costs` cut into consecutive non-empty groups, the most expensive as cheap as can be.

    Among equals the sum of squares decides, so that the other stages are even too:

        costs 4 1 1 4 2, 3 stages   ->   4 1 | 1 4 | 2   (5, 5, 2)   blocks 2, 2, 1
    """
    total = [0.0, *accumulate(costs)]
    blocks = len(costs)
    assert 1 <= stages <= blocks, "the configuration was checked"
    best: dict[int, Cut] = {0: (0.0, 0.0, ())}
    for _ in range(stages):
        best = one_more_group(best, total, max)
    return best[blocks][2]


Cut = tuple[float, float, tuple[int, ...]]
"""Groups of blocks: what is to be the least first, then the sum of the squares of their costs, and their counts."""


def one_more_group(
    best: Mapping[int, Cut], total: Sequence[float], added: Callable[[float, float], float]
) -> dict[int, Cut]:
    """The best cuts of the first blocks, by how many these are, with a group more than those of `best`.

    Args:
        best: the same without that group.
        total: cost of the first blocks, of none first.
        added: what a group of some cost makes of what is to be the least.
    """

    def extended(start: int, end: int) -> Cut:
        least, squares, counts = best[start]
        cost = total[end] - total[start]
        return added(least, cost), squares + cost * cost, (*counts, end - start)

    ends = range(min(best, default=len(total)) + 1, len(total))
    return {end: min(extended(start, end) for start in best if start < end) for end in ends}


def members(split: Sequence[int]) -> list[tuple[int, ...]]:
    """Block indices of each stage: (3, 2) -> [(0, 1, 2), (3, 4)]."""
    ends = list(accumulate(split))
    return [tuple(range(end - count, end)) for count, end in zip(split, ends, strict=True)]


def shares(costs: Sequence[float], split: Sequence[int]) -> list[float]:
    """Each stage's fraction of the whole cost."""
    whole = sum(costs) or 1.0
    return [sum(costs[i] for i in blocks) / whole for blocks in members(split)]


def cut_segments(config: Method, shapes: Sequence[BlockShape]) -> tuple[int, ...]:
    """Blocks of each segment; where only their number is asked for, balanced by counted forward arithmetic alone.

    Nothing is measured, so that every machine and every process finds the same.
    """
    if config.backpropagates:
        return (len(shapes),)
    if config.segments is None:
        return (1,) * len(shapes)
    if isinstance(config.segments, int):
        return _balance_after(config.first_cut_after or 1, [float(shape.macs) for shape in shapes], config.segments)
    return config.segments


def _balance_after(first: int, costs: Sequence[float], segments: int) -> tuple[int, ...]:
    """`balance` whose first group has at least `first` blocks: these count as one."""
    head, *others = balance([sum(costs[:first]), *costs[first:]], segments)
    return (head + first - 1, *others)


def segment_ends(config: Method, shapes: Sequence[BlockShape]) -> tuple[set[int], set[int]]:
    """Indices of the first and of the last block of every segment: gradients pass none of these borders."""
    pieces = members(cut_segments(config, shapes))
    return {piece[0] for piece in pieces}, {piece[-1] for piece in pieces}
