"""A measured quantity: median, least and greatest of its repetitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Difference", "Figure", "paired", "ratio", "summarize"]


@dataclass(frozen=True)
class Figure:
    """One measured quantity over its repetitions."""

    median: float
    minimum: float
    maximum: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference of means, with its standard error."""

    mean: float
    standard_error: float


def summarize(values: Sequence[float]) -> Figure:
    """The figure of repeated measurements, at least one."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def ratio(values: Sequence[float], references: Sequence[float]) -> Figure:
    """The figure of `values / references`, round by round: what disturbs a whole round falls out."""
    return summarize([value / reference for value, reference in zip(values, references, strict=True)])


def paired(values: Mapping[int, float], references: Mapping[int, float]) -> Difference | None:
    """Values minus the references of the same seeds: what a seed makes of everyone falls out; None below two pairs."""
    differences = [value - references[seed] for seed, value in values.items() if seed in references]
    if len(differences) < 2:
        return None
    return Difference(statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences)))
