"""How the order of the losses comes about in full runs: test errors on the way. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.paper.results import Kept, Run
from pipeline.config.paper import experiments, first_of

__all__ = ["Course", "courses"]

_SHARES = (1 / 40, 1 / 10, 1 / 4, 1 / 2, 1)
"""Of the schedule: where to look."""


@dataclass(frozen=True)
class Course:
    """The losses of one network, all trained as published.

    Attributes:
        network: data set, network and width.
        errors: by epoch and loss: mean test error in percent.
    """

    network: str
    errors: Mapping[int, Mapping[str, float]]


def courses(table: str, kept: Kept) -> list[Course]:
    """Of every network of a table that has been run in full with at least two losses."""
    found: dict[str, dict[str, Sequence[Run]]] = {}
    for name in experiments():
        network, _, loss = name.partition("/")[2].rpartition("/")
        for setting, runs in kept.get(first_of(name), {}).values():
            if name.partition("/")[0] == table and not setting.departure:
                found.setdefault(network, {})[loss] = runs
    all_courses = [Course(network, _errors(losses)) for network, losses in found.items() if len(losses) > 1]
    return [course for course in all_courses if course.errors]


def _errors(losses: Mapping[str, Sequence[Run]]) -> Mapping[int, Mapping[str, float]]:
    """At shares of the shortest schedule; without epochs that some run was not evaluated after."""
    curves = {loss: [run.test_curve for run in runs] for loss, runs in losses.items()}
    epochs = min(len(curve) for several in curves.values() for curve in several)
    found = {}
    for epoch in sorted({max(1, round(share * epochs)) for share in _SHARES}):
        there = {loss: [curve[epoch - 1] for curve in several] for loss, several in curves.items()}
        means = {loss: statistics.fmean(known) for loss, errors in there.items() if (known := _known(errors))}
        if len(means) == len(losses):
            found[epoch] = means
    return found


def _known(errors: Sequence[float | None]) -> list[float]:
    """All of them, or none where one is missing."""
    known = [error for error in errors if error is not None]
    return known if len(known) == len(errors) else []
