"""A user's own modules cut into blocks."""

from __future__ import annotations

import re
from typing import Any, cast

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


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last(self.first(x).relu()))


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, nn.Sequential.forward(self, 2 * x))  # type: ignore[no-untyped-call]


def layers() -> list[nn.Module]:
    return [nn.Linear(4, 4), nn.Linear(4, 2)]


@pytest.mark.parametrize(
    "given",
    [layers(), tuple(layers()), (layer for layer in layers()), nn.ModuleList(layers()), nn.Sequential(*layers())],
    ids=lambda given: type(given).__name__,
)
def test_blocks_come_in_anything_that_has_an_order(given: Any) -> None:
    assert [spec.name for spec in given_network(given)] == ["linear 0", "linear 1"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Own(), r"blocks is Own\(.*\); give pipeline\.blocks_from\(network\), or a list of modules"),
        (nn.Linear(4, 2), r"blocks is Linear\(.*\); give pipeline\.blocks_from\(network\)"),
        (Doubled(*layers()), r"blocks is Doubled\(.*\); give pipeline\.blocks_from\(network\)"),
        (
            nn.ModuleDict({"first": nn.Linear(4, 2)}),
            r"blocks is ModuleDict\(.*\); give pipeline\.blocks_from\(network\)",
        ),
        (nn.Sequential(nn.Linear(4, 2), nn.ReLU()), r"block 1 has no parameter .* as pipeline\.blocks_from does"),
        ({"first": nn.Linear(4, 2)}, r"blocks is \{'first': Linear\(.*\)\}; give pipeline\.blocks_from\(network\)"),
        (set(layers()), r"blocks is \{Linear\(.*\}; give pipeline\.blocks_from\(network\), or a list of modules"),
        (None, r"blocks is None; give pipeline\.blocks_from\(network\)"),
        ("vgg8b", r"blocks is 'vgg8b'; give pipeline\.blocks_from\(network\)"),
        (iter(()), "the network has no blocks; pass at least one"),
        ([layers()], r"block 0 is \[Linear\(.*\)\], which is no nn\.Module; give pipeline\.blocks_from\(network\)"),
        ([nn.Linear(4, 2), torch.relu], r"block 1 is <built-in method relu of .*>, which is no nn\.Module"),
        ([nn.Linear], r"block 0 is <class '.*Linear'>, which is no nn\.Module"),
    ],
)
def test_what_is_no_list_of_blocks_is_told_how_to_make_one(given: Any, told: str) -> None:
    assert re.search(told, message(lambda: given_network(given), ConfigError))
