"""How much arithmetic a plan is, and how long what is left of a list will take. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders.arithmetic import counted
from benchmarks.paper.rows import Plan
from pipeline.config.schema import override

__all__ = ["Clock", "work"]

_TRAINING_IMAGES = {
    **dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), 60_000),
    **dict.fromkeys(("cifar10", "cifar100"), 50_000),
    "svhn": 604_388,  # with the further ones
    "stl10": 5_000,
}


def work(plan: Plan) -> float:
    """Multiply-accumulates of all its epochs, evaluations left out: what its time goes with, roughly."""
    data = plan.config.data
    images = min(_TRAINING_IMAGES[data.dataset], data.train_limit or 10**12)
    _, costs = counted(override(plan.config, {"seed": 1, "epochs": 1, "lr_milestones": ()}))
    return plan.epochs * images * sum(costs)


class Clock:
    """Seconds left, told by what the plans so far took.

    Args:
        works: of all plans of the list, in order.
    """

    def __init__(self, works: Sequence[float]) -> None:
        self._works, self._done, self._seconds = list(works), 0.0, 0.0

    def finished(self, index: int, seconds: float) -> None:
        """A plan has taken so long for all of its epochs."""
        self._done += self._works[index]
        self._seconds += seconds

    def left(self, index: int, epoch_seconds: float | None, epochs: int, done: int) -> tuple[float, float] | None:
        """Of plan `index` and of the list with it; None before anything is known.

        Args:
            epoch_seconds: what one of its epochs takes, where one has been seen.
            epochs: that it has.
            done: that have ended.
        """
        if epoch_seconds is None and not self._done:
            return None
        if epoch_seconds is None:
            epoch_seconds = self._seconds / self._done * self._works[index] / epochs
        row = epoch_seconds * (epochs - done)
        pace = (self._seconds + epoch_seconds * epochs) / (self._done + self._works[index])
        return row, row + pace * sum(self._works[index + 1 :])
