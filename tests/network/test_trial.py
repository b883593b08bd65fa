"""A user's block tried out before training: what it is given, what it gives, and what is told."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from pipeline.errors import ConfigError
from pipeline.network.copies import copied
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import BlockShape, infer_shapes
from pipeline.seeding import HostGenerators
from tests.support.data import message


class Does(nn.Module):
    """A layer, and what is made of its result."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self._act = layer or nn.Linear(6, 8), act

    def forward(self, x: Tensor) -> Any:
        return self._act(self, self.layer(x))


def shapes_of(*blocks: nn.Module, shape: tuple[int, ...] = (6,)) -> list[BlockShape]:
    return infer_shapes(given_network(blocks), shape)


def told(*blocks: nn.Module, shape: tuple[int, ...] = (6,)) -> str:
    return message(lambda: shapes_of(*blocks, shape=shape), ConfigError)


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda m, h: (h, h), "gives a tuple in training where a tensor is wanted"),
        (lambda m, h: {"h": h}, "gives a dict in training where a tensor is wanted"),
        (lambda m, h: None, "gives a NoneType in training where a tensor is wanted"),
        (lambda m, h: h if m.training else (h,), "gives a tuple in evaluation where a tensor is wanted"),
        (lambda m, h: h.argmax(1), "gives int64 in training, but gradients need floating point"),
        (lambda m, h: h.view(-1, 4), r"gives a tensor of shape [4, 4] for a batch of 2 samples in training"),
        (lambda m, h: h.sum(1), r"gives a tensor of shape [2] for a batch of 2 samples in training"),
        (lambda m, h: h.mean(), r"gives a tensor of shape [] for a batch of 2 samples in training"),
        (lambda m, h: h if m.training else h[:, :4], "but [4] in evaluation; let both be the same"),
        (lambda m, h: h[:, : len(h)], "but [3] in batches of 3; let both be the same"),
        (lambda m, h: h.detach(), "gives a result without gradient, so that its weights cannot learn"),
    ],
)
def test_what_cannot_be_handed_on_is_told_before_training(act: Any, text: str) -> None:
    found = told(Does(act), nn.Linear(8, 3))
    assert text in found and found.startswith("block 0 (linear 0) ")


def test_the_reason_is_the_blocks_own() -> None:
    def act(module: nn.Module, h: Tensor) -> Tensor:
        raise KeyError("no such gate")

    text = told(Does(act))
    assert "block 0 (linear 0) does not take input of shape [6]: KeyError: 'no such gate'" in text


def test_a_gradient_that_fails_is_told_before_training() -> None:
    def spoils(module: nn.Module, h: Tensor) -> Tensor:
        kept = h.exp()
        return kept.mul_(2) if not h.requires_grad else kept.add(kept.mul_(2))

    assert "modified by an inplace operation" in told(Does(spoils))


def test_token_ids_are_told_in_one_message() -> None:
    text = message(lambda: given_network([nn.Embedding(9, 4), nn.Linear(4, 3)]), ConfigError)
    assert "block 0 begins with Embedding, but token ids are not supported" in text
    assert "looks up token ids, which are not supported" in told(nn.Linear(6, 6), nn.Embedding(9, 4))


class Viewed(nn.Module):
    """As code older than nn.Flatten."""

    def forward(self, x: Tensor) -> Any:
        return x.view(x.size(0), -1)


def test_maps_come_in_the_format_that_a_block_works_in() -> None:
    first, second = shapes_of(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), Viewed(), nn.Linear(64, 3)),
        shape=(2, 6, 6),
    )
    assert first.manners.channels_last and not second.manners.channels_last


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 4, 3), nn.Conv3d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3)])
def test_convolutions_of_every_kind_are_tried(layer: nn.Module) -> None:
    axes = layer.weight.ndim - 2  # type: ignore[operator]
    (shape,) = shapes_of(layer, shape=(2, *(5,) * axes))
    assert shape.outputs[0] == 4 and len(shape.outputs) == axes + 1


class InPlace(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer, self._name = nn.Linear(6, 6), name

    def forward(self, x: Tensor) -> Any:
        if self._name == "data":
            x.data.clamp_(min=0)
        elif self._name == "method":
            x += 1
        return self.layer(x)


@pytest.mark.parametrize("name", ["data", "method"])
def test_a_block_that_writes_to_its_input_is_noticed(name: str) -> None:
    quiet, loud = shapes_of(nn.Linear(6, 6), InPlace(name))
    assert not quiet.manners.writes_input and loud.manners.writes_input


def test_a_tail_that_writes_to_the_features_is_noticed() -> None:
    layers = nn.Linear(6, 6), nn.Hardswish(), nn.Dropout(0.5, inplace=True), nn.Linear(6, 3)
    first, last = infer_shapes(given_network(blocks_from(nn.Sequential(*layers))), (6,))
    assert first.manners.writes_features and not first.manners.writes_input
    assert not last.manners.writes_features


def test_trying_leaves_blocks_and_random_numbers_alone() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    infer_shapes(given_network(blocks_from(network)), (6,))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_that_the_next_block_does_not_take_are_told(dtype: torch.dtype) -> None:
    odd = Does(lambda m, h: h.to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert f"gives {name} in training, but the weights that follow are float32" in told(odd, nn.Linear(8, 3))
    assert len(shapes_of(nn.Linear(6, 6), odd)) == 2, "nothing follows the output layer"


def test_what_is_kept_of_the_batch_before_with_its_gradient_is_told() -> None:
    def recurrent(m: Any, h: Tensor) -> Tensor:
        before = getattr(m, "before", None)
        m.before = h if before is None or len(before) != len(h) else h + before
        return cast(Tensor, m.before)

    assert "computes with what it kept of the batch before, as with a hidden state; detach" in told(Does(recurrent))


def test_a_block_that_cannot_be_copied_is_told() -> None:
    block = Does(lambda m, h: h)
    block.lock = threading.Lock()  # type: ignore[assignment]
    text = told(block)
    assert "cannot be copied, to be tried out before training (TypeError: cannot pickle '_thread.lock'" in text


def test_scripted_layers_are_copied_as_what_can_learn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(6, 3))
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in copied(scripted).parameters())


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_draws_from_other_generators_are_noticed_and_undone(draw: Callable[[], float]) -> None:
    training = Does(lambda m, h: h * draw() if m.training else h)
    always = Does(lambda m, h: nn.functional.dropout(h))
    quiet = Does(lambda m, h: nn.functional.dropout(h, training=m.training))
    before = HostGenerators.now()
    found = [shapes_of(block)[0].manners for block in (training, always, quiet)]
    assert [each.draws_on_host for each in found] == [True, False, False]
    assert [each.draws_in_evaluation for each in found] == [False, True, False]
    assert HostGenerators.now() == before


def test_lazy_layers_get_their_sizes_and_keyed_weights() -> None:
    drawn: list[list[Tensor]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed * 100 + len(drawn))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
        infer_shapes(given_network(blocks_from(network)), (6,), seed=seed)
        drawn.append([parameter.clone() for parameter in network.parameters()])
    assert [tuple(parameter.shape) for parameter in drawn[0]] == [(5, 6), (5,), (5,), (5,), (3, 5), (3,)]
    assert all(map(torch.equal, drawn[0], drawn[1]))
    assert not torch.equal(drawn[0][0], drawn[2][0])


def test_layers_that_compute_their_weight_before_each_forward_are_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(nn.Linear(6, 6))
    pruned = prune.l1_unstructured(nn.Linear(6, 6), "weight", amount=0.5)
    parametrized = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
    assert len(shapes_of(normed, pruned, parametrized)) == 3


class Trains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)

    def train(self, epochs, data):  # type: ignore[no-untyped-def,override]
        raise AssertionError("not asked for")


def test_methods_that_shadow_torchs_own_are_told() -> None:
    text = message(lambda: given_network([Trains()]), ConfigError)
    assert "Trains.train(epochs, data) hides torch's Module.train(mode)" in text


def test_a_method_that_extends_torchs_own_is_taken() -> None:
    class Frozen(Does):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.layer.eval()
            return self

    assert len(shapes_of(Frozen(lambda m, h: h), nn.Linear(8, 3))) == 2
