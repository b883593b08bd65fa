"""Whether the losses come in the paper's order in our runs. Pure."""

from __future__ import annotations

import itertools
import math
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
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Those that differ in the paper, and here by more than the test images leave to chance."""
        return [pair for pair in self._differing if not self._close(*pair)]

    @property
    def close(self) -> Sequence[tuple[str, str]]:
        """Those that differ in the paper, and here by no more than that."""
        return [pair for pair in self._differing if self._close(*pair)]

    @property
    def agreeing(self) -> int:
        """How many `pairs` have the same one in front here and there."""
        return sum((self.ours[a] < self.ours[b]) == (self.paper[a] < self.paper[b]) for a, b in self.pairs)

    @property
    def _differing(self) -> Sequence[tuple[str, str]]:
        return [(a, b) for a, b in itertools.combinations(self.paper, 2) if self.paper[a] != self.paper[b]]

    def _close(self, a: str, b: str) -> bool:
        """Within two standard errors of the difference of two errors, as if of other test images."""
        images = _TEST_IMAGES.get(self.network.partition("/")[0], 10_000)
        variance = sum(self.ours[loss] * (100 - self.ours[loss]) / images for loss in (a, b))
        return abs(self.ours[a] - self.ours[b]) <= 2 * math.sqrt(variance)


_TEST_IMAGES = {"svhn": 26_032, "stl10": 8_000}  # the others have 10,000


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
