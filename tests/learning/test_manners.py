"""Blocks that write to what they are given, or want maps in another format: the same bits in every order of calls."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import Block
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import infer_shapes
from tests.support.in_place import Adds
from tests.support.sessions import state_of

CPU = Numerics(torch.device("cpu"))


def trained(
    layers: Sequence[nn.Module], shape: tuple[int, ...], split: tuple[int, ...], how: str, **values: Any
) -> str:
    """The state after three steps, by `step`, or by `forward` of all stages before any `update`."""
    stages = stages_of(blocks_from(nn.Sequential(*copy.deepcopy(list(layers)))), shape, split, **values)
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        x, labels = torch.randn(6, *shape, generator=draw), torch.randint(3, (6,), generator=draw)
        packet = Packet.of(Kind.TRAIN, Position(1, step), x, labels)
        _learn(stages, packet, how)
        assert len(stages[0].evaluate(packet).x) == 6
    return state_of(stages)


def stages_of(blocks: Sequence[Block], shape: tuple[int, ...], split: tuple[int, ...], **values: Any) -> list[Stage]:
    config = TrainConfig(batch_size=6, decoder_dim=32, target_projection=8, lr=1e-2, **values)
    network = given_network(blocks)
    shapes = infer_shapes(network, shape)
    return [build_stage(config, network, shapes, 3, split, index, CPU) for index in range(len(split))]


def _learn(stages: Sequence[Stage], packet: Packet, how: str) -> None:
    gradient: Tensor | None = None
    for stage in stages:
        packet = stage.step(packet) if how == "step" else stage.forward(packet)
    if how != "step":
        for stage in reversed(stages):
            gradient = stage.update(gradient)


ENDS: dict[str, Callable[[bool], list[nn.Module]]] = {
    "dropout": lambda inplace: [nn.Linear(6, 8), nn.Hardswish(), nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 3)],
    "after relu": lambda inplace: [nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 3)],
    "before": lambda inplace: [
        nn.Linear(6, 8),
        nn.Sequential(nn.ReLU(inplace), nn.Linear(8, 8)),
        nn.Sequential(nn.LeakyReLU(inplace=inplace), nn.Linear(8, 3)),
    ],
    "own": lambda inplace: [nn.Linear(6, 8), Adds(inplace), nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 3)],
    "first": lambda inplace: [nn.SiLU(inplace), nn.Linear(6, 8), nn.Linear(8, 3)],
}


@pytest.mark.parametrize("loss", ["predsim", "glob", "glob+pred"])
@pytest.mark.parametrize("ends", ENDS)
def test_in_place_layers_at_the_ends_of_a_block_change_no_bit(ends: str, loss: str) -> None:
    states = set()
    for inplace in (False, True):
        torch.manual_seed(5)
        layers = ENDS[ends](inplace)
        count = len(blocks_from(nn.Sequential(*layers)))
        for split in ((count,), (1, count - 1)):
            states |= {
                trained(layers, (6,), split, how, loss=loss) for how in ("step", "forward")[loss != "predsim" :]
            }
    assert len(states) == 1


def test_a_network_given_in_evaluation_mode_learns_in_training_mode_from_the_first_step() -> None:
    torch.manual_seed(5)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)]
    asleep = [copy.deepcopy(layer).eval() for layer in layers]
    assert trained(asleep, (6,), (2,), "step") == trained(layers, (6,), (2,), "step")


class Recomputed(nn.Module):
    """Gives its weights a gradient only where its input has one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layer, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("loss", ["predsim", "glob"])
def test_a_block_whose_weights_learn_only_with_a_gradient_of_the_input_learns(loss: str) -> None:
    states = set()
    for middle in (Recomputed(), nn.Sequential(OrderedDict(layer=nn.Linear(8, 8)))):
        torch.manual_seed(5)
        layers = [nn.Linear(6, 8), middle, nn.Linear(8, 3)]
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.1)
        splits = ((3,), (1, 2)) if loss == "glob" else ((3,), (1, 1, 1))
        states |= {trained(layers, (6,), split, "forward", loss=loss) for split in splits}
    assert len(states) == 1


def drawn_by_numpy() -> float:
    """By the generator of all: a method of it would be copied with a generator of its own."""
    return float(np.random.rand())  # noqa: NPY002  as modules do


class Skips(nn.Module):
    """Draws from one of the generators that are not torch's, or from torch's in evaluation."""

    def __init__(self, draw: Callable[[], float], always: bool = False) -> None:
        super().__init__()
        self._draw, self._always = draw, always

    def forward(self, x: Tensor) -> Any:
        return x * 2 if (self.training or self._always) and self._draw() < 0.5 else x


@pytest.mark.parametrize("draw", [random.random, drawn_by_numpy])
def test_numbers_from_other_generators_than_torchs_are_keyed(draw: Callable[[], float]) -> None:
    torch.manual_seed(5)
    layers = [nn.Linear(6, 8), Skips(draw), nn.Linear(8, 8), Skips(draw), nn.Linear(8, 3)]
    states = {trained(layers, (6,), split, how) for split in ((3,), (1, 2)) for how in ("step", "forward")}
    assert len(states) == 1


class _Rough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Callable[[], float]) -> Tensor:
        ctx.draw = draw
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * (1 + ctx.draw()), None


class Roughens(nn.Module):
    """Draws when it passes a gradient back."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self._draw = draw

    def forward(self, x: Tensor) -> Any:
        return _Rough.apply(x, self._draw)


@pytest.mark.parametrize("loss", ["pred", "glob"])
@pytest.mark.parametrize(
    "draw",
    [random.random, drawn_by_numpy, lambda: float(torch.rand(()))],
    ids=["Python", "NumPy", "torch"],
)
def test_numbers_drawn_in_a_backward_are_keyed(draw: Callable[[], float], loss: str) -> None:
    torch.manual_seed(5)
    layers = [nn.Linear(6, 8), Roughens(draw), nn.Linear(8, 8), Roughens(draw), nn.Linear(8, 3)]
    hows = ("step", "forward")[loss == "glob" :]
    assert len({trained(layers, (6,), split, how, loss=loss) for split in ((3,), (1, 2)) for how in hows}) == 1


def test_numbers_drawn_in_evaluation_are_keyed() -> None:
    layers = [nn.Linear(6, 8), Skips(lambda: float(torch.rand(())), always=True), nn.Linear(8, 3)]
    network = given_network(blocks_from(nn.Sequential(*layers)))
    config, shapes = TrainConfig(batch_size=6, decoder_dim=32), infer_shapes(network, (6,))
    stage = build_stage(config, network, shapes, 3, (2,), 0, CPU)
    x = torch.randn(6, 6)
    results = []
    for step in (1, 2, 3, 4, 5, 6):
        packet = Packet.of(Kind.EVALUATE, Position(1, step), x, torch.zeros(6, dtype=torch.int64))
        results.append(stage.evaluate(packet).x)
        assert torch.equal(stage.evaluate(packet).x, results[-1])
    assert not all(torch.equal(each, results[0]) for each in results)


@pytest.mark.parametrize("loss", ["predsim", "glob"])
def test_a_block_that_views_its_maps_learns_in_every_split(loss: str) -> None:
    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.view(x.size(0), -1)

    torch.manual_seed(5)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Viewed(), nn.Linear(16, 3)]
    states = {trained(layers, (2, 6, 6), split, "forward", loss=loss) for split in ((3,), (1, 2), (1, 1, 1))}
    assert len(states) == 1


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((2, 6, 6, 6), [nn.Conv3d(2, 4, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 3)]),
        ((2, 6), [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 3)]),
        ((6, 6), [nn.Linear(6, 8), nn.PReLU(), nn.LayerNorm(8), nn.Flatten(), nn.Linear(8 * 6, 3)]),
    ],
)
def test_activations_of_any_number_of_axes_learn(shape: tuple[int, ...], layers: list[nn.Module]) -> None:
    assert trained(layers, shape, (2,), "step") == trained(layers, shape, (1, 1), "forward")


class HandsOn(Block):
    """With weights in both of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(6, 8), nn.Linear(8, 8)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))

    def hand_on(self, h: Tensor) -> Tensor:
        handed_on: Tensor = self.last(h)
        return handed_on


@pytest.mark.parametrize(
    "values",
    [
        {"loss": "glob"},
        {"loss": "glob+pred"},
        {"loss": "pred", "segments": 1},
        {"loss": "pred", "classifier": "copy", "head_start": "random"},
    ],
    ids=str,
)
def test_weights_of_what_is_handed_on_learn_where_a_loss_sees_it(values: dict[str, Any]) -> None:
    torch.manual_seed(5)
    block = HandsOn()
    before = block.last.weight.detach().clone()
    (stage,) = stages_of([block, *blocks_from(nn.Linear(8, 3))], (6,), (2,), **values)
    packet = Packet.of(Kind.TRAIN, Position(1, 0), torch.ones(6, 6), torch.tensor([0, 1, 2] * 2))
    stage.step(packet)
    assert not before.equal(block.last.weight)


@pytest.mark.parametrize("values", [{"loss": "pred"}, {"loss": "predsim"}, {"loss": "sim-bio"}], ids=str)
def test_weights_of_what_is_handed_on_are_refused_where_no_loss_sees_it(values: dict[str, Any]) -> None:
    told = (
        r"^linear 0 has weights in hand_on, which its loss does not see, so that they cannot learn; "
        r"move them to features, or take a --classifier that judges what is handed on, such as copy$"
    )
    with pytest.raises(ConfigError, match=told):
        stages_of([HandsOn(), *blocks_from(nn.Linear(8, 3))], (6,), (2,), **values)
    with pytest.raises(ConfigError, match="has weights in hand_on"):
        stages_of([*blocks_from(nn.Linear(4, 6)), HandsOn()], (4,), (2,), **values)
