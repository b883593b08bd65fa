"""Whether the losses come in the paper's order in our runs. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.paper.results import Kept
from pipeline.config.paper import experiments, first_of

__all__ = ["Comparison", "comparisons"]


@dataclass(frozen=True)
class Comparison:
    """The losses of one network that we ran under one setting.

    Attributes:
        network: data set, network and width.
        departure: from the recipes; empty for the paper's own schedule.
        ours: mean test error in percent, by the loss's name.
        paper: what is published of the same losses; empty where nothing is.
    """

    network: str
    departure: str
    ours: Mapping[str, float]
    paper: Mapping[str, float]

    @property
    def agreeing(self) -> int:
        """Pairs of losses of which the same one is better here and there."""
        return sum((self.ours[a] < self.ours[b]) == (self.paper[a] < self.paper[b]) for a, b in self.pairs)

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Those that differ in the paper."""
        return [(a, b) for a, b in itertools.combinations(self.paper, 2) if self.paper[a] != self.paper[b]]


def comparisons(table: str, kept: Kept) -> list[Comparison]:
    """Of every network of a table, and every setting, with at least two losses."""
    found: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {}
    for name, experiment in experiments().items():
        if name.partition("/")[0] != table:
            continue
        network, _, loss = name.partition("/")[2].rpartition("/")
        for setting, runs in kept.get(first_of(name), {}).values():
            mean = statistics.fmean(run.test_error_percent for run in runs)
            found.setdefault((network, setting.departure), {})[loss] = mean, experiment.error_percent
    return [
        Comparison(
            network,
            departure,
            {loss: ours for loss, (ours, _) in losses.items()},
            {loss: paper for loss, (_, paper) in losses.items() if paper is not None},
        )
        for (network, departure), losses in found.items()
        if len(losses) > 1
    ]
