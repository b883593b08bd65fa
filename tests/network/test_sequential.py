"""A user's own modules cut into blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from pipeline.errors import ConfigError
from pipeline.network.blocks import SequentialBlock
from pipeline.network.sequential import blocks_from, given_network
from tests.support.data import message


def test_a_sequential_is_cut_at_children_with_weights() -> None:
    blocks = blocks_from(
        nn.Sequential(
            nn.Upsample(scale_factor=1),
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 9, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
    )
    assert len(blocks) == 3
    first = blocks[0]
    assert isinstance(first, SequentialBlock)
    assert [type(m).__name__ for m in first.body] == ["Upsample", "Conv2d", "BatchNorm2d", "ReLU"]
    assert [type(m).__name__ for m in first.tail] == ["Dropout2d", "MaxPool2d", "Flatten"]


def test_blocks_from_keeps_the_given_weights_and_the_function() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 1, 4, 4)
    y = x
    for block in blocks_from(network):
        y = block(y)
    assert torch.equal(y, network(x))


def test_a_module_without_weights_may_be_used_twice() -> None:
    relu = nn.ReLU()
    blocks = blocks_from(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)))
    assert [sum(isinstance(m, nn.ReLU) for m in block.modules()) for block in blocks] == [1, 1, 0]


class Scales(nn.Module):
    """Numbers to multiply by and to add, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))])

    def forward(self, x: Tensor) -> Any:
        return x * self.both[0] + self.both[1]


def test_numbers_to_multiply_by_belong_to_the_layer_before_however_they_are_kept() -> None:
    norm = nn.BatchNorm1d(8)
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    layer = parametrizations.weight_norm(nn.Linear(8, 1, bias=False))
    blocks = blocks_from(nn.Sequential(nn.Linear(4, 8), norm, Scales(), nn.ReLU(), layer, nn.Linear(1, 2)))
    assert [len(list(next(iter(block.children())).children())) for block in blocks] == [4, 1, 1]


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="the network of 2 children has no weights"):
        blocks_from(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_shared_parameters_are_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"blocks 0 and 1 share the parameter body\.2\.weight"):
        blocks_from(nn.Sequential(layer, nn.ReLU(), layer))


def test_a_block_that_cannot_learn_is_refused() -> None:
    frozen = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(ConfigError, match="block 1 has no parameter that learns"):
        given_network([nn.Linear(4, 4), frozen, nn.Linear(4, 2)])


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (nn.Linear(4, 2), "blocks are a list of modules, not a Linear; make them by pipeline.blocks_from"),
        ([nn.Linear(4, 4), torch.relu], "block 1 is a builtin_function_or_method, not an nn.Module"),
        ([nn.Linear(4, 4), nn.ReLU], "block 1 is the class ReLU, not an nn.Module; give one"),
        ({"first": nn.Linear(4, 4)}, "block 0 is a str, not an nn.Module"),
        (3, "blocks are a list of modules, not a int"),
        ([], "the network has no blocks"),
    ],
)
def test_blocks_that_are_no_list_of_modules_are_told(blocks: Any, told: str) -> None:
    assert told in message(lambda: given_network(blocks), ConfigError)


def test_blocks_may_come_one_by_one() -> None:
    assert len(given_network(nn.Linear(4, 4) for _ in range(2))) == 2  # type: ignore[arg-type]
