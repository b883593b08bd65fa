"""How far local learning is behind global backprop after as many epochs of the same training. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import Difference, paired
from benchmarks.paper.results import Kept, Run, Setting
from pipeline.config.paper import experiments, first_of

__all__ = ["Behind", "Local", "all_behind"]

_BACKPROP = "glob"

_OF_LOCAL_LOSSES = {
    *("beta", "decoder_dim", "target_projection", "similarity_head"),
    *("classifier", "head_start", "head_lr", "segments", "first_cut_after"),
}
"""Settings that backprop does not have."""


@dataclass(frozen=True)
class Local:
    """A local loss.

    Attributes:
        name: with what differs from its recipe.
        error: test error in percent, mean over seeds.
        gap: that minus backprop's, seed by seed.
    """

    name: str
    error: float
    gap: Difference


@dataclass(frozen=True)
class Behind:
    """Backprop under one setting and whatever was trained beside it.

    Attributes:
        network: data set, network and width.
        departure: from the recipe; empty for the paper's own.
        error: of backprop, test error in percent, mean over seeds.
        seeds: of backprop.
        others: the best first, at least one.
    """

    network: str
    departure: str
    error: float
    seeds: int
    others: Sequence[Local]


def all_behind(table: str, kept: Kept) -> list[Behind]:
    """Of every network of a table, and every setting, with two seeds or more of backprop and of a local loss."""
    found = []
    for name in experiments():
        network, _, loss = name.rpartition("/")
        if loss != _BACKPROP or name.partition("/")[0] != table:
            continue
        for setting, runs in kept.get(first_of(name), {}).values():
            others = sorted(_others(network, setting, runs, kept), key=lambda one: one.error)
            if others:
                told = network.partition("/")[2]
                found.append(Behind(told, setting.departure, _mean(runs), len(runs), others))
    return found


def _others(network: str, setting: Setting, references: Sequence[Run], kept: Kept) -> Iterator[Local]:
    for name in experiments():
        of, _, loss = name.rpartition("/")
        if of != network or loss == _BACKPROP:
            continue
        for own, runs in kept.get(first_of(name), {}).values():
            gap = paired(_errors(runs), _errors(references))
            if gap is not None and _shared(own) == _shared(setting):
                yield Local(", ".join([loss, *_heads(own)]), _mean(runs), gap)


def _shared(setting: Setting) -> Mapping[str, Any]:
    """What backprop and local losses must have in common to be compared."""
    common = {name: value for name, value in setting.changes.items() if name not in _OF_LOCAL_LOSSES}
    return {**common, "epochs": setting.epochs}


def _heads(setting: Setting) -> Iterator[str]:
    for name, value in setting.changes.items():
        if name in _OF_LOCAL_LOSSES:
            yield f"{name.replace('_', ' ')} {value}"


def _errors(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: run.test_error_percent for run in runs}


def _mean(runs: Sequence[Run]) -> float:
    return statistics.fmean(run.test_error_percent for run in runs)
