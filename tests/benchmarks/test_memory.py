"""The memory benchmark: bytes known by hand are counted, data or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.experiments.memory import (
    BACKPROP,
    MICROBATCHES,
    PRED,
    PREDSIM,
    STAGES,
    WHOLE,
    Case,
    Method,
    count,
    queue_bytes,
)
from benchmarks.harness.saved import SavedTensors, checkpointed_peak, peaks
from pipeline.learning.numerics import Numerics
from pipeline.network.spec import BlockShape

SMALL = Case("vgg8b", width=1 / 16, batch=2 * MICROBATCHES)


def test_saved_tensors_count_until_the_backward_frees_them() -> None:
    layer, x = nn.Linear(3, 4), torch.ones(2, 3)
    saved = SavedTensors([layer])
    with saved:
        loss = (layer(x) ** 2).sum()  # keeps x [2, 3] for the weights, and the layer's result [2, 4] for the square
        assert saved.bytes == 4 * (6 + 8)
        loss.backward()
    assert (saved.bytes, saved.peak) == (0, 4 * (6 + 8))


def test_a_storage_counts_once_and_a_graph_that_is_dropped_not_at_all() -> None:
    first, second, x = nn.Linear(3, 4), nn.Linear(4, 5), torch.ones(2, 3)
    saved = SavedTensors([first, second])
    with saved:
        out = second(torch.relu_(first(x)))  # the rectified [2, 4] is kept by relu and by the second layer
        assert saved.bytes == 4 * (6 + 8)
        held = saved.hold(x[:1])  # a view of what the first layer keeps
        assert saved.bytes == 4 * (6 + 8)
        del out
        assert saved.bytes == 4 * 6
        del held
    assert (saved.bytes, saved.peak) == (0, 4 * (6 + 8))


def test_weights_do_not_count_even_where_they_are_saved() -> None:
    layers = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 5, bias=False))
    activations, everything, x = SavedTensors([layers]), SavedTensors([]), torch.ones(2, 3)
    with activations:
        first = layers(x)
    with everything:
        second = layers(x)
    assert first.grad_fn is not None and second.grad_fn is not None  # the graphs live
    assert activations.bytes == 4 * (6 + 8)
    assert everything.bytes == activations.bytes + 4 * 20  # the second layer's weights, for its input's gradient


def test_every_step_has_a_peak_of_its_own() -> None:
    layer, sizes = nn.Linear(3, 4), iter((2, 6, 2))

    def step() -> None:
        (layer(torch.ones(next(sizes), 3)) ** 2).sum().backward()

    assert peaks(step, [layer], 3) == [4 * 14, 4 * 42, 4 * 14]


def test_gradients_are_those_of_an_uncounted_step() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    x, labels = torch.randn(6, 3), torch.arange(6) % 5
    with SavedTensors([layers]):
        F.cross_entropy(layers(x), labels).backward()
    counted = [p.grad for p in layers.parameters()]
    layers.zero_grad()
    F.cross_entropy(layers(x), labels).backward()
    for found, parameter in zip(counted, layers.parameters(), strict=True):
        assert found is not None and parameter.grad is not None and torch.equal(found, parameter.grad)


def test_checkpoints_keep_all_inputs_and_one_block() -> None:
    blocks = [nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 4)), nn.Linear(4, 5)]
    x, labels = torch.ones(2, 3), torch.tensor([0, 1])
    # Inside the first block: its input [2, 3] and tanh's result [2, 40]. Inside the second there is less.
    assert checkpointed_peak(blocks, x, labels) == 4 * (6 + 80)
    blocks = [nn.Linear(3, 4), nn.Linear(4, 5)]
    # Both inputs, log-softmax [2, 5], labels (int64 [2]) and the sum of their weights.
    assert checkpointed_peak(blocks, x, labels) == 4 * (6 + 8 + 10 + 1) + 8 * 2


METHODS = [
    *WHOLE,
    *(Method("stage", loss, stage=stage) for loss in ("pred", "predsim") for stage in range(STAGES)),
    *(Method(kind, stage=stage, microbatches=MICROBATCHES) for kind in ("1F1B", "GPipe") for stage in range(STAGES)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_counts_without_data_are_those_with_data(method: Method) -> None:
    counts = count(method, SMALL, 2, Numerics(torch.device("cpu")))
    assert counts[0] == counts[1] > 0
    assert count(method, SMALL, 1) == counts[:1]


def test_counts_of_the_first_block_of_vgg11b_that_widens() -> None:
    # The most expensive of its blocks takes 128 maps of 32x32 and makes 256. Kept: input, the convolution's result
    # (for batch norm), the rectified one; classifier input, labels and scores are small. predsim: centred once more.
    maps, batch = 4 * 32 * 32, 4
    pred, predsim = (count(method, Case(batch=batch), 1)[0] for method in (PRED, PREDSIM))
    assert 0 <= pred - batch * maps * (128 + 2 * 256) < 0.02 * pred
    assert 0 <= predsim - batch * maps * (128 + 3 * 256) < 0.02 * predsim
    assert predsim < count(BACKPROP, Case(batch=batch), 1)[0] / 2


def test_a_schedule_holds_as_many_microbatches_as_are_under_way() -> None:
    held = {
        (kind, stage): Method(kind, stage=stage, microbatches=MICROBATCHES).in_flight()
        for kind in ("1F1B", "GPipe")
        for stage in range(STAGES)
    }
    assert [held["1F1B", stage] for stage in range(STAGES)] == [4, 3, 2, 1]
    assert all(held["GPipe", stage] == MICROBATCHES for stage in range(STAGES))
    assert Method("1F1B", stage=0, microbatches=2).in_flight() == 2
    half, whole = (count(Method(kind, stage=0, microbatches=8), SMALL, 1)[0] for kind in ("1F1B", "GPipe"))
    assert whole == 2 * half


def test_queues_hold_their_buffers() -> None:
    shapes = [BlockShape((3, 8, 8), (4, 8, 8), (4, 4, 4), 1), BlockShape((4, 4, 4), (5,), (5,), 1)]
    shapes.append(BlockShape((5,), (10,), (10,), 1))
    # Depth 4: two send slots, two receive slots and the buffer at work. 4 bytes a number, batches of 2.
    assert queue_bytes(shapes, [0], 2, 4) == 4 * 2 * (2 * 64)
    assert queue_bytes(shapes, [1], 2, 4) == 4 * 2 * (3 * 64 + 2 * 5)
    assert queue_bytes(shapes, [2], 2, 4) == 4 * 2 * (3 * 5)
    assert queue_bytes(shapes, [1], 2, 1) == 4 * 2 * (1 * 64 + 1 * 5)
    assert queue_bytes(shapes, [0, 1, 2], 2, 4) == 0
