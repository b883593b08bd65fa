"""How much arithmetic a plan is, and how long what is left of a list will take. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from benchmarks.paper.rows import Plan
from pipeline.config.catalog import DATASETS
from pipeline.config.schema import RunConfig, override
from pipeline.learning.profile import count_costs
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network

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
    return plan.epochs * images * _of_an_image(override(plan.config, {"seed": 1, "epochs": 1, "lr_milestones": ()}))


@cache
def _of_an_image(config: RunConfig) -> float:
    info = DATASETS[config.data.dataset]
    assert info.shape is not None and info.classes is not None
    network = named_network(config.model, info.shape, info.classes, config.train.loss)
    shapes = infer_shapes(network, info.shape)
    return sum(count_costs(config.train, network, shapes, info.classes))


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
