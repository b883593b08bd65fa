"""Made-up curves of a small race."""

from __future__ import annotations

from benchmarks.race.curves import Curve
from benchmarks.race.ledger import Trained
from benchmarks.race.tasks import tasks

__all__ = ["QUICK", "curve_of", "run_of"]

(QUICK,) = tasks(True, "data")


def curve_of(*errors: float) -> Curve:
    return Curve(tuple(range(10, 10 * len(errors) + 1, 10)), errors, 1.0)


def run_of(seed: int, *errors: float) -> Trained:
    return Trained(0.1, 1.0, seed, curve_of(*errors))
