"""What is kept of an evaluation: what exits.json holds. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.learning.exit_figures import Confusion, ThresholdFigures

__all__ = ["Evaluated", "ExitRecord"]


@dataclass(frozen=True)
class ExitRecord:
    """One exit; costs are multiply-accumulates relative to the network alone.

    Attributes:
        cost: of an answer there, with the blocks up to it and its own classifier.
        cumulative_cost: with the classifiers of all exits before.
    """

    exit: int
    block: int
    layer: str
    error_percent: float
    cost: float
    cumulative_cost: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What exits.json holds.

    Attributes:
        exits: the output layer last, whose error is the network's.
        average_error_percent: of the averaged probabilities of the last n exits, n from 1.
    """

    schema: int = 1
    command: str
    dataset: str
    model: str
    loss: str
    weights_sha256: str
    device: str
    batch_size: int
    samples: int
    exits: tuple[ExitRecord, ...]
    average_error_percent: tuple[float, ...]
    thresholds: tuple[ThresholdFigures, ...]
    confusion: Confusion | None
