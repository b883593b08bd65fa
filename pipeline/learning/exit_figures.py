"""What local classifiers are good for, from their class scores of a test set: pure functions.

Shapes: E exits, N samples, K classes. Scores are a tensor [N, K] of every exit, the network's own last; labels are
int64 [N].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "Confusion",
    "ExitFigures",
    "ThresholdFigures",
    "average_errors",
    "confidence",
    "confusion",
    "exit_errors",
    "exit_figures",
    "probabilities",
    "threshold_figures",
]


@dataclass(frozen=True)
class ThresholdFigures:
    """What comes of it where every sample leaves at the first exit that is so sure.

    Attributes:
        threshold: the least probability of the likeliest class to leave with.
        error_percent: of the answers that are given so.
        cost: multiply-accumulates of a sample on average, relative to the network alone.
        shares: of all samples, those that leave at each exit.
    """

    threshold: float
    error_percent: float
    cost: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ExitFigures:
    """Figures of a test set of so many samples.

    Attributes:
        error_percent: of each exit alone.
        average_error_percent: of the averaged probabilities of the last n exits, n = 1 to E.
        thresholds: of each threshold asked for.
    """

    samples: int
    error_percent: tuple[float, ...]
    average_error_percent: tuple[float, ...]
    thresholds: tuple[ThresholdFigures, ...]


@dataclass(frozen=True)
class Confusion:
    """Samples by true class (row) and answer (column), K x K, and the error of each class, None where it has none."""

    matrix: tuple[tuple[int, ...], ...]
    error_percent: tuple[float | None, ...]


def probabilities(scores: Tensor) -> Tensor:
    """Softmax of class scores [N, K], in float64: two scores that differ stay apart."""
    return scores.double().softmax(1)


def confidence(scores: Tensor) -> Tensor:
    """Probability of the likeliest class, float64 [N]."""
    return probabilities(scores).amax(1)


def exit_figures(
    scores: Sequence[Tensor], labels: Tensor, thresholds: Sequence[float], costs: Sequence[float]
) -> ExitFigures:
    """All figures; `costs` are those of leaving at each exit, with all classifiers tried on the way."""
    judged = _Judged.of(scores, labels)
    tried = tuple(judged.leaving(threshold, costs) for threshold in thresholds)
    return ExitFigures(len(labels), exit_errors(scores, labels), average_errors(scores, labels), tried)


def exit_errors(scores: Sequence[Tensor], labels: Tensor) -> tuple[float, ...]:
    """Error in percent of each exit alone."""
    return tuple(_error(_answers(each), labels) for each in scores)


def average_errors(scores: Sequence[Tensor], labels: Tensor) -> tuple[float, ...]:
    """Error in percent of the averaged probabilities of the last n exits, n = 1 to E."""
    errors, total = [], torch.zeros(())
    for each in reversed(scores):
        total = total + probabilities(each)  # a sum has the same largest entry
        errors.append(_error(_answers(total), labels))
    return tuple(errors)


def threshold_figures(
    scores: Sequence[Tensor], labels: Tensor, threshold: float, costs: Sequence[float]
) -> ThresholdFigures:
    """What comes of leaving at the first exit whose `confidence` is at least `threshold`; all leave at the last."""
    return _Judged.of(scores, labels).leaving(threshold, costs)


@dataclass(frozen=True)
class _Judged:
    """What thresholds go by: confidence float64 [E, N], answers int64 [E, N], labels [N]."""

    confidence: Tensor
    answers: Tensor
    labels: Tensor

    @classmethod
    def of(cls, scores: Sequence[Tensor], labels: Tensor) -> Self:
        sure, answers = (torch.stack([act(each) for each in scores]) for act in (confidence, _answers))
        return cls(sure, answers, labels)

    def leaving(self, threshold: float, costs: Sequence[float]) -> ThresholdFigures:
        sure = self.confidence >= threshold
        sure[-1] = True
        left = sure.long().argmax(0)  # the first of equals
        answers = self.answers.gather(0, left.unsqueeze(0)).squeeze(0)
        counts = torch.bincount(left, minlength=len(sure)).tolist()
        shares = tuple(count / len(self.labels) for count in counts)
        cost = math.fsum(share * cost for share, cost in zip(shares, costs, strict=True))
        return ThresholdFigures(threshold, _error(answers, self.labels), cost, shares)


def confusion(scores: Tensor, labels: Tensor) -> Confusion:
    """Which classes an exit takes for which."""
    classes = scores.shape[1]
    matrix = torch.bincount(labels * classes + _answers(scores), minlength=classes * classes).view(classes, classes)
    rows = tuple(tuple(row) for row in matrix.tolist())
    errors = (100.0 * (sum(row) - row[k]) / sum(row) if sum(row) else None for k, row in enumerate(rows))
    return Confusion(rows, tuple(errors))


def _answers(scores: Tensor) -> Tensor:
    return scores.argmax(1)


def _error(answers: Tensor, labels: Tensor) -> float:
    return 100.0 * int((answers != labels).sum()) / len(labels)
