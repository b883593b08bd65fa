"""Random networks of layers of all kinds: each trains with the same bits in one stage and in two, or is refused."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError, DataError
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import build_stage
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import infer_shapes
from tests.support.sessions import state_of

CASES = int(os.environ.get("RANDOM_NETWORKS", "50"))
CLASSES, BATCH = 3, 4
CPU = Numerics(torch.device("cpu"))
Draw = Callable[[Any], Any]


class Views(nn.Module):
    """Flattens as code older than nn.Flatten."""

    def forward(self, x: Tensor) -> Any:
        return x.view(x.size(0), -1)


class Adds(nn.Module):
    """Writes to what it is given."""

    def forward(self, x: Tensor) -> Any:
        x += 0.5
        return x


class Folds(nn.Module):
    """Lets the second axis join the batch."""

    def forward(self, x: Tensor) -> Any:
        return x.flatten(0, 1)


class Detaches(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.detach()


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0][:, -1]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return x + self.inner(x)


def _convolution(draw: Draw, shape: tuple[int, ...]) -> Any:
    kind = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}.get(len(shape))
    if kind is None:
        return _linear(draw, shape)
    return kind(shape[0], draw(st.integers(1, 4)), draw(st.sampled_from([1, 3])), padding=draw(st.integers(0, 1)))


def _linear(draw: Draw, shape: tuple[int, ...]) -> Any:
    features = draw(st.integers(1, 6))
    layer = draw(st.sampled_from([nn.Linear(shape[-1], features), nn.LazyLinear(features)]))
    if isinstance(layer, nn.LazyLinear) or draw(st.integers(0, 4)):
        return layer
    return nn.utils.parametrizations.weight_norm(layer)


def _norm(draw: Draw, shape: tuple[int, ...]) -> Any:
    channels, axes = shape[0], len(shape)
    batch = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}.get(axes, nn.BatchNorm1d)
    instance = {2: nn.InstanceNorm1d, 3: nn.InstanceNorm2d}.get(axes, nn.InstanceNorm2d)
    others: list[nn.Module] = [nn.LayerNorm(shape[-1]), nn.GroupNorm(1, channels), nn.RMSNorm(shape[-1])]
    return draw(st.sampled_from([batch(channels), instance(channels), nn.LocalResponseNorm(2), *others]))


def _nonlinearity(draw: Draw, shape: tuple[int, ...]) -> Any:
    inplace = draw(st.booleans())
    kinds = [nn.ReLU(inplace), nn.LeakyReLU(inplace=inplace), nn.Hardswish(inplace), nn.SiLU(inplace), nn.GELU()]
    return draw(st.sampled_from([*kinds, nn.PReLU(), nn.Tanh(), nn.Softmax(-1), nn.RReLU(inplace=inplace), Adds()]))


def _dropout(draw: Draw, shape: tuple[int, ...]) -> Any:
    inplace = draw(st.booleans())
    kinds = [nn.Dropout(0.3, inplace), nn.Dropout1d(0.3, inplace), nn.Dropout2d(0.3, inplace), nn.AlphaDropout(0.3)]
    return draw(st.sampled_from(kinds))


def _pooling(draw: Draw, shape: tuple[int, ...]) -> Any:
    kinds: dict[int, list[nn.Module]] = {
        2: [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2)],
        3: [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 2), nn.PixelUnshuffle(2)],
        4: [nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1)],
    }
    return draw(st.sampled_from([*kinds.get(len(shape), [nn.MaxPool2d(2)]), nn.Upsample(scale_factor=2)]))


def _shape(draw: Draw, shape: tuple[int, ...]) -> Any:
    return draw(st.sampled_from([nn.Flatten(), Views(), nn.Identity(), Folds(), Detaches(), nn.Flatten(1, 2)]))


def _recurrent(draw: Draw, shape: tuple[int, ...]) -> Any:
    if draw(st.integers(0, 3)):
        return Last(nn.GRU(shape[-1], 3, batch_first=True)) if len(shape) == 2 else _composite(draw, shape)
    return nn.GRU(shape[-1], 3, batch_first=True)


def _composite(draw: Draw, shape: tuple[int, ...]) -> Any:
    inner = [_linear(draw, shape), _nonlinearity(draw, shape), nn.LazyLinear(shape[-1])]
    return draw(st.sampled_from([Residual(nn.Sequential(*inner)), nn.Sequential(*inner), Residual(nn.Tanh())]))


LAYERS = (
    *(_convolution, _convolution, _linear, _linear, _norm, _norm, _nonlinearity, _nonlinearity, _dropout, _pooling),
    *(_shape, _composite, _composite, _recurrent),
)


@st.composite
def networks(draw: Any) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Up to eight layers, most of them sized for what comes to them, and the shape of a sample."""
    shape = given_shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    layers: list[nn.Module] = []
    torch.manual_seed(draw(st.integers(0, 99)))
    for _ in range(draw(st.integers(1, 7))):
        sized = shape if draw(st.integers(0, 15)) else (*shape[:-1], shape[-1] + 1)
        layers.append(draw(st.sampled_from(LAYERS))(draw, sized))
        try:
            with torch.no_grad():
                out = copy.deepcopy(layers[-1]).train()(torch.randn(2, *shape))
            shape = tuple(out.shape[1:]) or shape
        except Exception:
            break  # the trial will say so
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES)), given_shape


def trained(network: nn.Sequential, shape: tuple[int, ...], config: TrainConfig, stages: int, *, handed: bool) -> str:
    """The state after three steps, the last one on a smaller batch, and an evaluation."""
    described = given_network(blocks_from(network))
    shapes = infer_shapes(described, shape)
    count = len(described)
    split = (count,) if stages == 1 else (count // 2, count - count // 2)
    made = [build_stage(config, described, shapes, CLASSES, split, index, CPU) for index in range(stages)]
    for step, size in enumerate((BATCH, BATCH, BATCH - 1)):
        draw = torch.Generator().manual_seed(step)
        x, labels = torch.randn(size, *shape, generator=draw), torch.randint(CLASSES, (size,), generator=draw)
        packet = Packet.of(Kind.TRAIN, Position(1, step), x, labels)
        for stage in made:
            packet = stage.forward(packet) if handed else stage.step(packet)
        if handed:
            for stage in made:
                stage.update()
    packet = Packet.of(Kind.EVALUATE, Position(1, 3), x, labels)
    for stage in made:
        packet = stage.evaluate(packet)
    return state_of(made)


@pytest.mark.fuzz
@given(networks(), st.sampled_from(["pred", "sim", "predsim", "pred-bio"]))
@settings(max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_a_random_network_trains_the_same_in_one_stage_and_in_two_or_is_refused(
    made: tuple[nn.Sequential, tuple[int, ...]], loss: str
) -> None:
    network, shape = made
    config = TrainConfig(loss=loss, batch_size=BATCH, decoder_dim=32, target_projection=8, lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lazy layers, and of poolings of small maps
        try:
            one = trained(copy.deepcopy(network), shape, config, 1, handed=False)
        except (ConfigError, DataError) as error:
            event(f"refused: {type(error).__name__}")
            refused = str(error)
        else:
            refused = ""
        if refused:
            assert "\n" not in refused
            return
        count = len(blocks_from(network))
        event(f"trained: {count} blocks")
        if count > 1:
            assert trained(copy.deepcopy(network), shape, config, 2, handed=True) == one
        assert trained(copy.deepcopy(network), shape, config, 1, handed=True) == one
