"""Measuring what blocks cost must leave no mark on the run."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.catalog import LOSSES
from pipeline.config.schema import TrainConfig
from pipeline.learning import profile
from pipeline.learning.numerics import Numerics
from pipeline.learning.profile import block_costs, count_costs, measure_costs
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import create_model
from pipeline.runtime.checkpoint import digest
from tests.support.clock import Clock

SHAPE = (3, 8, 8)
CPU = Numerics(torch.device("cpu"))


@pytest.mark.parametrize("loss", LOSSES)
def test_measuring_touches_neither_weights_nor_statistics_nor_random_numbers(loss: str) -> None:
    blocks = create_model("vgg6a", input_shape=SHAPE, classes=4, width=0.0625, hidden_units=8, dropout=0.2, loss=loss)
    network = given_network(blocks)
    before = [digest(dict(block.state_dict())) for block in blocks]
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    config = TrainConfig(loss=loss, batch_size=4, decoder_dim=32, target_projection=8)
    costs = measure_costs(config, network, infer_shapes(network, SHAPE), 4, CPU)
    assert len(costs) == 6 and min(costs) > 0
    assert torch.equal(torch.rand(2), expected)
    assert [digest(dict(block.state_dict())) for block in blocks] == before


def counted(loss: str, **values: Any) -> list[float]:
    """Costs of a convolution of 3 to 16 maps on 8x8 and an output layer of 10 scores."""
    network = given_network(
        blocks_from(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10)))
    )
    config = TrainConfig(loss=loss, batch_size=4, **values)
    return count_costs(
        config,
        network,
        infer_shapes(network, SHAPE),
        10,
    )


def test_of_an_optimizer_only_the_matrix_products_of_muon_count() -> None:
    filters, features, iterations, batch = 16, 9 * 3, 5, 4
    muon = iterations * (2 * filters**2 * features + filters**3) / batch
    conv, output = counted("pred")
    assert counted("pred", optimizer="muon") == [conv + muon, output]
    assert counted("pred", optimizer="sgd", ema=0.9) == [conv, output]


def test_counted_costs_hold_every_pass_and_the_head() -> None:
    """Local learning is forward and weight gradient; a head and global backpropagation add the input gradient."""
    conv, output = 9 * 3 * 16 * 64, 16 * 64 * 10
    assert counted("glob") == [2 * conv, 3 * output]
    assert counted("pred") == [2 * conv + 3 * output, 2 * output]  # the head is a classifier, too
    assert counted("pred", segments=(2,)) == [2 * conv, 3 * output]
    head = 9 * 16 * 16 * 64
    matrices = 2 * 16 * 4 + 10 * 4  # of a batch of 4: of 16 maps with the gradient, and of 10 classes
    assert counted("sim") == [2 * conv + 3 * head + matrices, 2 * output]
    assert counted("sim", similarity_head="pool-4x4") == [2 * conv + 3 * head / 4 + matrices, 2 * output]


def test_counting_touches_neither_weights_nor_random_numbers() -> None:
    blocks = create_model("vgg6a", input_shape=SHAPE, classes=4, width=0.0625, hidden_units=8, dropout=0.2)
    network = given_network(blocks)
    before = [digest(dict(block.state_dict())) for block in blocks]
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    assert min(count_costs(TrainConfig(batch_size=4), network, infer_shapes(network, SHAPE), 4)) > 0
    assert torch.equal(torch.rand(2), expected)
    assert [digest(dict(block.state_dict())) for block in blocks] == before


CLOCK = Clock()  # a block is copied before it is measured: its clock must not be


class Slow(nn.Linear):
    """Takes a given time, and no other."""

    def __init__(self, seconds: float) -> None:
        super().__init__(4, 4)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.sleep(self.seconds)
        return super().forward(x)


def test_a_block_costs_the_seconds_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "time", CLOCK)
    network = given_network([Slow(0.25), Slow(1.5), Slow(0.0)])
    costs = measure_costs(TrainConfig(loss="pred", batch_size=4), network, infer_shapes(network, (4,)), 4, CPU)
    assert costs == pytest.approx([0.25, 1.5, 0.0])


class _Late(torch.autograd.Function):
    """Takes a given time backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        CLOCK.sleep(ctx.seconds)
        return gradients[0], None


class SlowBackward(Slow):
    """Takes its time forward, and twice of that backward."""

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Late.apply(super().forward(x), 2 * self.seconds))


@pytest.mark.parametrize("loss", ["pred", "glob", "glob+pred"])
def test_a_step_is_forward_and_backward_whosever_gradient_it_is(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In global backpropagation the gradient of all blocks but the last comes from the next one."""
    monkeypatch.setattr(profile, "time", CLOCK)
    network = given_network([SlowBackward(0.25), SlowBackward(1.5), SlowBackward(1.0)])
    costs = measure_costs(TrainConfig(loss=loss, batch_size=4), network, infer_shapes(network, (4,)), 4, CPU)
    assert costs == pytest.approx([0.75, 4.5, 3.0])


class FromZeroToOne(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.min()) < 0 or float(x.max()) > 1:
            raise ValueError("pixels are from 0 to 1")
        return super().forward(x)


def test_a_block_is_measured_on_numbers_that_it_takes() -> None:
    network = given_network([FromZeroToOne(4, 4), nn.Linear(4, 4)])
    config = TrainConfig(loss="pred", batch_size=4)
    assert len(measure_costs(config, network, infer_shapes(network, (4,)), 4, CPU)) == 2


def test_group_training_is_balanced_by_arithmetic() -> None:
    network = given_network(create_model("mlp", input_shape=SHAPE, classes=4, hidden_units=8))
    config = TrainConfig(segments=2, batch_size=4)
    costs, unit = block_costs(config, network, infer_shapes(network, SHAPE), 4, CPU)
    assert "multiply-accumulates" in unit and all(cost == int(cost) for cost in costs)
