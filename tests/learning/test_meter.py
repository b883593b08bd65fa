"""Meters count what every block makes of every batch, and as cheaply for many blocks as for few."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.learning.meter import Meter, Scored
from pipeline.learning.scores import BlockScore
from tests.support.operations import Operations

CPU = torch.device("cpu")


def scored(*losses: float, classes: int | None = 3) -> list[Scored]:
    """Four samples each, of which every block takes all for class 1."""
    scores = None if classes is None else torch.eye(classes)[torch.ones(4, dtype=torch.int64)]
    return [Scored(torch.tensor(loss), scores) for loss in losses]


LABELS = torch.tensor([1, 1, 0, 2])


def test_means_and_errors_of_every_block() -> None:
    meter = Meter([2, 5], CPU)
    meter.add(scored(1.0, 4.0), LABELS)
    meter.add([Scored(torch.tensor(3.0), torch.eye(3)[LABELS]), *scored(4.0)], LABELS)
    assert meter.read(reset=True) == {2: BlockScore(2, 2.0, 25.0), 5: BlockScore(5, 4.0, 50.0)}
    assert meter.read(reset=True) == {}


def test_a_block_without_scores_has_no_errors_and_an_output_may_have_more_classes_than_another() -> None:
    meter = Meter([0, 1, 2], CPU)
    meter.add([*scored(1.0, classes=None), *scored(1.0, classes=3), *scored(1.0, classes=7)], LABELS)
    errors = [score.error_percent for score in meter.read(reset=False).values()]
    assert errors == [None, 50.0, 50.0]


def test_a_meter_goes_on_from_a_state() -> None:
    first, second = Meter([0, 3], CPU), Meter([0, 3], CPU)
    first.add([*scored(1.0, classes=None), *scored(2.0)], LABELS)
    second.load({block: state.clone() for block, state in first.state().items()})
    for meter in (first, second):
        meter.add([*scored(5.0, classes=None), *scored(6.0)], LABELS)
    assert (
        first.read(reset=True) == second.read(reset=True) == {0: BlockScore(0, 3.0, None), 3: BlockScore(3, 4.0, 50.0)}
    )


@pytest.mark.parametrize("classes", [None, 3])
def test_many_blocks_cost_as_many_operations_as_few(classes: int | None) -> None:
    counts = []
    for blocks in (2, 16):
        meter, batch = Meter(range(blocks), CPU), scored(*[1.0] * blocks, classes=classes)
        with Operations() as operations:
            meter.add(batch, LABELS)
        counts.append(operations.count)
    assert counts[0] == counts[1] <= 10


def test_the_first_loss_that_is_not_finite_is_named_by_its_batch() -> None:
    meter = Meter([2, 5, 6], CPU)
    for losses in ((1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (math.inf, 1.0, math.nan), (math.nan, math.inf, 1.0)):
        meter.add(scored(*losses), LABELS)
        if losses == (1.0, 2.0, 3.0):
            assert meter.first_spoilt() is None
    again = Meter([2, 5, 6], CPU)
    again.load(meter.state())
    for one in (meter, again):
        assert one.first_spoilt() == (2, 2), "the third batch, and of two blocks the one nearer to the input"
        assert one.batches == 4
    assert meter.read(reset=True) == {}, "errors of such outputs would be made up"
    assert meter.first_spoilt() is None


def test_looking_for_what_is_not_finite_never_waits_for_the_device() -> None:
    """Nor does it change a sum."""
    meter = Meter([0], torch.device("meta"))
    batch = [Scored(torch.empty((), device="meta"), None)]
    meter.add(batch, torch.empty(4, dtype=torch.int64, device="meta"))
