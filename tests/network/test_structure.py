"""What blocks are made of, compared between processes that have built them apart."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.sequential import blocks_from
from pipeline.network.structure import first_difference, parts_of


class Own(nn.Module):
    """Tells what is in its weights, and where something lies."""

    def __init__(self, width: int = 4, *, talks: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))
        self.register_buffer("seen", torch.zeros(width))
        self.talks = talks

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def extra_repr(self) -> str:
        if not self.talks:
            raise ValueError("not now")
        return f"scale={self.scale.tolist()}"


class Call(nn.Module):
    """Holds no tensor, and says what may hold in one process alone."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x * self.slope

    def extra_repr(self) -> str:
        return f"{self.slope}, {random.random()}, { ({'bb', 'ccc', 'a'}) }"


class Around(nn.Module):
    """Tells what is in the weights of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)

    def extra_repr(self) -> str:
        return f"{self.child.weight.sum().item()}"


class Residual(nn.Module):
    """Taken apart by its calls."""

    def __init__(self, *, smooth: bool = False, slope: float = 0.1, factor: float = 2.0) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)
        self.smooth, self.slope, self.factor = smooth, slope, factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        result: Tensor = self.two((F.gelu(h) if self.smooth else F.leaky_relu(h, self.slope)) * self.factor)
        return result


def difference(mine: nn.Module, theirs: nn.Module) -> tuple[str, str] | None:
    there = first_difference(parts_of([theirs]), parts_of([mine]))
    here = first_difference(parts_of([mine]), parts_of([theirs]))
    assert here == (None if there is None else there[::-1]), "seen from both sides"
    return here


def test_what_may_hold_in_one_process_alone_does_not_count() -> None:
    assert difference(Own(), Own()) is None
    assert difference(Own(), Own(talks=False)) is None
    assert difference(Call(2.0), Call(2.0)) is None
    assert difference(Around(), Around()) is None
    lists = [nn.ParameterList([torch.rand(2)]) for _ in range(2)]
    assert difference(*lists) is None
    rounding = [torch.ao.quantization.FakeQuantize() for _ in range(2)]
    rounding[0](torch.randn(4))
    assert rounding[0].scale != rounding[1].scale and difference(*rounding) is None


def test_classes_settings_shapes_and_what_learns_count() -> None:
    assert difference(Own(3), Own()) == ("Own at 0 with scale [3]", "Own at 0 with scale [4]")
    frozen, free = nn.Linear(2, 2, bias=False).requires_grad_(False), nn.Linear(2, 2, bias=False)
    assert difference(frozen, free) == ("Linear at 0 with weight [2, 2] frozen", "Linear at 0 with weight [2, 2]")
    wide = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    assert difference(wide, free) == ("Linear at 0 with weight [2, 2] float64", "Linear at 0 with weight [2, 2]")
    assert difference(nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=0.2)) is not None
    assert difference(nn.Sequential(nn.Sigmoid(), nn.Tanh()), nn.Sequential(nn.Sigmoid())) == (
        "Tanh at 0.1",
        "no further module",
    )


@pytest.mark.parametrize(
    ("change", "ours", "theirs"),
    [
        ({"smooth": True}, "leaky_relu", "gelu"),
        ({"slope": 0.3}, "(x, negative_slope=0.1", "(x, negative_slope=0.3"),
        ({"factor": 1.0}, "mul(x, 2.0)", "mul(x, 1.0)"),
    ],
    ids=["function", "argument", "factor"],
)
def test_calls_in_a_forward_that_was_taken_apart_count(change: dict[str, Any], ours: str, theirs: str) -> None:
    plain, other = parts_of(blocks_from(Residual())), parts_of(blocks_from(Residual(**change)))
    found = first_difference(plain, other)
    assert found is not None and ours in found[0] and theirs in found[1]
    assert first_difference(plain, parts_of(blocks_from(Residual()))) is None


def test_a_lazy_layer_differs_by_what_it_knows_alone() -> None:
    built = nn.LazyLinear(3)
    built(torch.zeros(1, 5))
    assert difference(nn.LazyLinear(3), nn.LazyLinear(3)) is None
    assert difference(nn.LazyLinear(3), built) is None
    assert difference(nn.LazyLinear(3), nn.LazyLinear(4)) is not None
    assert difference(nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d(momentum=0.2)) is not None
