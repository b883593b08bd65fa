"""Figures of exits: each against what it says, counted sample by sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.learning.exit_figures import (
    average_errors,
    confidence,
    confusion,
    exit_errors,
    exit_figures,
    probabilities,
    threshold_figures,
)

CASES = st.tuples(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 12), st.integers(2, 5))
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def made_up(seed: int, exits: int, samples: int, classes: int) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    scores = [3 * torch.randn(samples, classes, generator=draw) for _ in range(exits)]
    return scores, torch.randint(classes, (samples,), generator=draw)


def sure(scores: Tensor, k: int, p: float) -> Tensor:
    """Scores of two classes whose softmax gives class k the probability p."""
    logs = torch.tensor([1 - p, p]).log()
    return logs if k else logs.flip(0)


def test_two_samples_by_hand() -> None:
    first = torch.stack([sure(torch.empty(0), 0, 0.9), sure(torch.empty(0), 1, 0.6)])
    last = torch.stack([sure(torch.empty(0), 1, 0.7), sure(torch.empty(0), 1, 0.8)])
    labels = torch.tensor([0, 0])
    found = exit_figures([first, last], labels, (0.5, 0.8, 1.0), (0.25, 1.5))
    assert found.samples == 2
    assert found.error_percent == (50.0, 100.0)
    assert found.average_error_percent == (100.0, 50.0), "0.9 + 0.3 of the first, 0.4 + 0.2 of the second"
    assert [(each.error_percent, each.cost, each.shares) for each in found.thresholds] == [
        (50.0, 0.25, (1.0, 0.0)),
        (50.0, 0.875, (0.5, 0.5)),
        (100.0, 1.5, (0.0, 1.0)),
    ]


@QUICK
@given(CASES, st.floats(0, 1))
def test_thresholds_are_what_each_sample_does(case: tuple[int, int, int, int], threshold: float) -> None:
    scores, labels = made_up(*case)
    costs = [float(number + 1) for number in range(len(scores))]
    wrong, spent, left = 0, 0.0, [0] * len(scores)
    for sample, label in enumerate(labels.tolist()):
        for number, each in enumerate(scores):
            chances = torch.softmax(each[sample].double(), 0)
            if float(chances.max()) >= threshold or number + 1 == len(scores):
                break
        wrong += int(chances.argmax()) != label
        spent, left[number] = spent + costs[number], left[number] + 1
    found = threshold_figures(scores, labels, threshold, costs)
    assert found.error_percent == pytest.approx(100 * wrong / len(labels))
    assert found.cost == pytest.approx(spent / len(labels))
    assert found.shares == pytest.approx([count / len(labels) for count in left])


@QUICK
@given(CASES)
def test_averages_begin_with_the_network_and_end_with_all(case: tuple[int, int, int, int]) -> None:
    scores, labels = made_up(*case)
    averages = average_errors(scores, labels)
    assert len(averages) == len(scores) and averages[0] == exit_errors(scores, labels)[-1]
    mean = torch.stack([each.double().softmax(1) for each in scores]).mean(0)
    assert averages[-1] == pytest.approx(100 * float((mean.argmax(1) != labels).double().mean()))


@QUICK
@given(CASES)
def test_a_confusion_matrix_counts_every_sample_once(case: tuple[int, int, int, int]) -> None:
    scores, labels = made_up(*case)
    found = confusion(scores[-1], labels)
    answers = scores[-1].argmax(1).tolist()
    for row, line in enumerate(found.matrix):
        for column, count in enumerate(line):
            assert count == sum(pair == (row, column) for pair in zip(labels.tolist(), answers, strict=True))
    right = sum(found.matrix[k][k] for k in range(len(found.matrix)))
    assert 100 * (1 - right / len(labels)) == pytest.approx(exit_errors(scores, labels)[-1])


def test_a_class_without_samples_has_no_error() -> None:
    found = confusion(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 0]))
    assert found.matrix == ((1, 1, 0), (0, 0, 0), (0, 0, 0))
    assert found.error_percent == (50.0, None, None)


def test_scores_that_differ_in_the_last_bit_have_probabilities_that_differ() -> None:
    above = torch.tensor([[1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()]])
    assert int(probabilities(above).argmax(1)) == 1
    assert average_errors([above], torch.tensor([1])) == (0.0,)


def test_a_score_that_is_no_number_is_sure_of_nothing() -> None:
    assert not bool(confidence(torch.tensor([[float("nan"), 1.0]])) >= 0)
    scores = [torch.tensor([[float("nan"), 1.0]]), torch.tensor([[0.0, 1.0]])]
    assert threshold_figures(scores, torch.tensor([1]), 0.0, (1.0, 2.0)).shares == (0.0, 1.0)
