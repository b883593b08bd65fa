"""Memory formats of a user's weights while they train, and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.network.formats import formats_kept, lay_out


def strides(network: nn.Module) -> list[tuple[int, ...]]:
    return [tensor.stride() for tensor in network.state_dict().values()]


def transposed(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.transpose(0, 3).contiguous().transpose(0, 3)
    return network


@pytest.mark.parametrize("prepare", [nn.Module.train, transposed, lambda m: m.to(memory_format=torch.channels_last)])
def test_weights_come_back_in_the_format_that_they_were_given_in(prepare: Callable[[nn.Module], nn.Module]) -> None:
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    network = prepare(nn.Sequential(*layers))
    before = strides(network)
    data = TensorDataset(torch.randn(8, 2, 6, 6), torch.arange(8) % 3)
    config = pipeline.TrainConfig(epochs=1, batch_size=4, threads=1, decoder_dim=32)
    result = pipeline.train(pipeline.blocks_from(network), data, data, config)
    assert strides(network) == before
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(result.model(x), network(x))


def test_weights_come_back_after_an_error() -> None:
    layer = nn.Conv2d(2, 4, 3)
    before = strides(layer)
    with suppress(ValueError), formats_kept([layer]):
        lay_out(layer, channels_last=True)
        assert strides(layer) != before
        raise ValueError
    assert strides(layer) == before


def test_tensors_of_one_memory_stay_so() -> None:
    first, second, alone = (nn.Conv2d(4, 4, 3) for _ in range(3))
    second.weight.data = first.weight.data
    lay_out(nn.ModuleList([first, second, alone]), channels_last=True)
    assert first.weight.data_ptr() == second.weight.data_ptr()
    assert alone.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_has_no_memory_is_laid_out() -> None:
    layers: list[nn.Module] = [nn.Conv2d(4, 4, 3, device="meta") for _ in range(2)]
    lay_out(nn.ModuleList(layers), channels_last=True)
    weights: list[Tensor] = [weight for layer in layers for weight in layer.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
