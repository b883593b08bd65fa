"""What blocks are made of, compared between processes that have built them apart."""

from __future__ import annotations

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
    """Holds no tensor: what it says of itself is all that there is to compare."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x * self.slope

    def extra_repr(self) -> str:
        return f"{self.slope},\n{object()!r}"


class Residual(nn.Module):
    """Taken apart by its calls."""

    def __init__(self, *, smooth: bool) -> None:
        super().__init__()
        self.one, self.two, self.smooth = nn.Linear(4, 4), nn.Linear(4, 2), smooth

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        result: Tensor = self.two(F.gelu(h) if self.smooth else F.relu(h))
        return result


def difference(mine: nn.Module, theirs: nn.Module) -> tuple[str, str] | None:
    there = first_difference(parts_of([theirs]), parts_of([mine]))
    here = first_difference(parts_of([mine]), parts_of([theirs]))
    assert here == (None if there is None else there[::-1]), "seen from both sides"
    return here


def test_weights_buffers_and_addresses_do_not_count() -> None:
    assert difference(Own(), Own()) is None
    assert difference(Own(), Own(talks=False)) is None
    assert difference(Call(2.0), Call(2.0)) is None
    lists = [nn.ParameterList([torch.rand(2)]) for _ in range(2)]
    assert difference(*lists) is None


def test_classes_words_shapes_and_what_learns_count() -> None:
    assert difference(Own(3), Own()) == ("Own(scale [3], seen [3]) at 0", "Own(scale [4], seen [4]) at 0")
    assert difference(Call(2.0), Call(3.0)) is not None
    frozen = nn.Linear(2, 2, bias=False).requires_grad_(False)
    found = difference(frozen, nn.Linear(2, 2, bias=False))
    assert found is not None and found[0].endswith("weight [2, 2] frozen) at 0")
    assert difference(nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=0.2)) is not None
    assert difference(nn.Sequential(nn.Sigmoid(), nn.Tanh()), nn.Sequential(nn.Sigmoid())) == (
        "Tanh() at 0.1",
        "no further module",
    )


def test_calls_of_functions_in_a_forward_that_was_taken_apart_count() -> None:
    plain, smooth = (parts_of(blocks_from(Residual(smooth=smooth))) for smooth in (False, True))
    found = first_difference(plain, smooth)
    assert found is not None and "relu" in found[0] and "gelu" in found[1]
    assert first_difference(plain, parts_of(blocks_from(Residual(smooth=False)))) is None


def test_a_lazy_layer_differs_by_what_it_knows_alone() -> None:
    built = nn.LazyLinear(3)
    built(torch.zeros(1, 5))
    assert difference(nn.LazyLinear(3), nn.LazyLinear(3)) is None
    assert difference(nn.LazyLinear(3), built) is None
    assert difference(nn.LazyLinear(3), nn.LazyLinear(4)) is not None
    assert difference(nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d(momentum=0.2)) is not None
