"""A user's block tried out before training: what it is given, what it gives, and what is told."""

from __future__ import annotations

import random
import re
import warnings
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


def drawn_by_numpy() -> float:
    return float(np.random.rand())  # noqa: NPY002  as modules do


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
        (lambda m, h: h.double(), "gives float64 in training where float32 is wanted; end it with .float()"),
        (lambda m, h: h.half(), "gives float16 in training where float32 is wanted; end it with .float()"),
    ],
)
def test_what_cannot_be_handed_on_is_told_before_training(act: Any, text: str) -> None:
    found = told(Does(act), nn.Linear(8, 3))
    assert text in found and found.startswith("block 0 (linear 0) ")


def raises(error: Exception) -> Callable[[nn.Module, Tensor], Tensor]:
    def act(module: nn.Module, h: Tensor) -> Tensor:
        raise error

    return act


def test_the_reason_is_the_blocks_own() -> None:
    text = told(Does(raises(KeyError("no such gate"))))
    assert "block 0 (linear 0) does not take input of shape [6]: KeyError: 'no such gate' (with 2 samples in " in text


def test_a_reason_without_words_is_told_by_its_line() -> None:
    assert re.search(r"AssertionError: line \d+ of test_trial.py, raise error", told(Does(raises(AssertionError()))))


def test_memory_that_runs_out_is_told_as_that() -> None:
    text = told(Does(raises(RuntimeError("DefaultCPUAllocator: you tried to allocate 9 bytes"))))
    assert "block 0 (linear 0) runs out of memory with 2 samples in training, each of shape [6]" in text
    assert "you tried to allocate 9 bytes" in text and "does not take" not in text


def test_a_result_of_inference_mode_is_told_as_one_without_gradient() -> None:
    class Inferring(Does):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    assert "gives a result without gradient, so that its weights cannot learn" in told(Inferring(lambda m, h: h))


def test_class_scores_may_be_of_any_number_format() -> None:
    assert len(shapes_of(nn.Linear(6, 8), Does(lambda m, h: h.double(), nn.Linear(8, 3)))) == 2


class Beside(nn.Module):
    """Adds something to what it is given, made with the layer by a function."""

    def __init__(self, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self._act = nn.Linear(6, 6), act

    def forward(self, x: Tensor) -> Any:
        return x + self._act(self.layer, x)


@pytest.mark.parametrize("act", [lambda layer, x: layer(x).detach(), lambda layer, x: x])
def test_weights_that_get_no_gradient_are_told(act: Callable[[nn.Module, Tensor], Tensor]) -> None:
    found = told(Beside(act), nn.Linear(6, 3))
    assert "block 0 (linear 0) gives none of its weights a gradient, so that they cannot learn" in found


@pytest.mark.parametrize("hidden", [lambda layer: layer.__call__, lambda layer: [layer]])
def test_weights_that_a_block_hides_are_told(hidden: Callable[[nn.Module], Any]) -> None:
    held = hidden(nn.Linear(6, 6))
    call = held[0] if isinstance(held, list) else held
    found = told(Beside(lambda layer, x: layer(x) + call(x)), nn.Linear(6, 3))
    assert "block 0 (linear 0) computes with weights of shape [6, 6] that are none of its parameters" in found


def test_layers_left_out_at_random_learn() -> None:
    dropped = Beside(lambda layer, x: layer(x) if torch.rand(()) < 0.5 else x)
    for _ in range(5):
        assert len(shapes_of(dropped, nn.Linear(6, 3))) == 2


class Keeps(nn.Module):
    """A layer, and something that its first forward makes."""

    def __init__(self, make: Callable[[Any], None]) -> None:
        super().__init__()
        self.layer, self._make = nn.Linear(6, 8), make
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x: Tensor) -> Any:
        self._make(self)
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda m: setattr(m, "scale", nn.Parameter(torch.ones(8))), "makes body.0.scale of shape [8], but what"),
        (lambda m: m.register_buffer("mask", torch.ones(2, 8)), "makes body.0.mask of shape [2, 8], but what"),
        (lambda m: setattr(m, "seen", torch.ones(8)), "makes body.0.seen of shape [8], before it [0], but what"),
    ],
)
def test_what_a_first_forward_makes_is_told(make: Callable[[Any], None], text: str) -> None:
    found = told(Keeps(make), nn.Linear(8, 3))
    assert f"the first forward of block 0 (linear 0) {text}" in found
    assert found.endswith("make it when the module is built, or run a batch through the network first")


def test_a_buffer_that_is_not_kept_may_come_and_grow() -> None:
    def make(module: Any) -> None:
        module.register_buffer("mask", torch.ones(2, 8), persistent=False)

    assert len(shapes_of(Keeps(make), nn.Linear(8, 3))) == 2


def test_a_batch_of_one_sample_is_tried_where_there_will_be_one() -> None:
    network = given_network([Does(lambda m, h: h.unsqueeze(2).squeeze()), nn.Linear(8, 3)])
    assert len(infer_shapes(network, (6,))) == 2
    text = message(lambda: infer_shapes(network, (6,), single=True), ConfigError)
    assert "gives a tensor of shape [8] for a batch of 1 sample in evaluation; let it keep the batch" in text


def test_a_block_that_takes_numbers_from_0_to_1_alone_gets_such() -> None:
    class Strict(Does):
        def forward(self, x: Tensor) -> Any:
            if float(x.min()) < 0 or float(x.max()) > 1:
                raise ValueError("pixels are from 0 to 1")
            return self.layer(x)

    strict, other = shapes_of(Strict(lambda m, h: h), nn.Linear(8, 3))
    assert strict.manners.unit and not other.manners.unit


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


def test_trying_leaves_gradients_and_other_generators_alone() -> None:
    layer = nn.Linear(6, 8)
    layer.weight.grad = torch.ones(8, 6)
    around = Does(lambda m, h: F.linear(h, layer.weight.T) + random.random() + drawn_by_numpy())
    found = []
    for draws in (False, True):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        if draws:
            told(layer, around)
        found.append((random.random(), drawn_by_numpy()))
    assert found[0] == found[1]
    assert torch.equal(layer.weight.grad, torch.ones(8, 6))


class Holds(nn.Module):
    """A layer, and something that is no tensor."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(6, 6), held

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def test_what_cannot_be_copied_is_shared_with_the_copy() -> None:
    held = [Lock(), F, iter([1]), deque([torch.ones(2, requires_grad=True) * 2])]
    for each in held:
        assert len(shapes_of(Holds(each))) == 1


def test_a_module_that_refuses_to_be_copied_is_told() -> None:
    class Refuses(Holds):
        def __deepcopy__(self, memo: object) -> Any:
            raise RuntimeError("one of me is enough")

    text = told(Refuses(None))
    assert "block 0 (linear 0) cannot be copied, which trying it out needs (RuntimeError: one of me is enough)" in text


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # it is on its way out
def test_the_copy_of_a_scripted_module_can_be_trained() -> None:
    made = copied(torch.jit.script(nn.Linear(6, 6)))
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in made.parameters())


class Counting(nn.Module):
    seen: Tensor

    def __init__(self, *, spare: bool) -> None:
        super().__init__()
        self.layer, self.aux, self.calls = nn.LazyLinear(8), nn.LazyLinear(8), 0
        self.register_buffer("seen", torch.zeros(()))
        self._spare = spare

    def forward(self, x: Tensor) -> Any:
        self.calls, self.seen = self.calls + 1, self.seen + 1
        return self.layer(x) + (self.aux(x) if self.training and not self._spare else 0)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_of_training_alone_get_their_sizes_and_nothing_else_changes() -> None:
    block = Counting(spare=False)
    shapes_of(block)
    assert type(block.aux) is nn.Linear and block.aux.weight.shape == (8, 6)
    assert (block.calls, float(block.seen), block.training) == (0, 0, True)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_that_is_not_used_is_told() -> None:
    text = told(Counting(spare=True))
    assert "never uses its lazy parameter body.0.aux.weight; leave it out, or give it a size" in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_that_the_next_block_does_not_take_are_told(dtype: torch.dtype) -> None:
    odd = Does(lambda m, h: h.to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert f"gives {name} in training where float32 is wanted; end it with .float()" in told(odd, nn.Linear(8, 3))
    assert len(shapes_of(nn.Linear(6, 6), odd)) == 2, "nothing follows the output layer"


def test_what_is_kept_of_the_batch_before_with_its_gradient_is_told() -> None:
    def recurrent(m: Any, h: Tensor) -> Tensor:
        before = getattr(m, "before", None)
        m.before = h if before is None or len(before) != len(h) else h + before
        return cast(Tensor, m.before)

    assert "computes with what it kept of the batch before, as with a hidden state; detach" in told(Does(recurrent))


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


def test_draws_of_a_backward_are_noticed_and_hooks_of_weights_may_draw() -> None:
    def rough(m: nn.Module, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
        return h

    drawing, hooked, followed = Does(rough), Does(lambda m, h: h), Does(lambda m, h: h)
    next(hooked.parameters()).register_hook(lambda gradient: gradient)
    next(followed.parameters()).register_post_accumulate_grad_hook(lambda weight: None)
    quiet = Does(lambda m, h: nn.functional.dropout(h))
    before = HostGenerators.now()
    found = [shapes_of(block)[0].manners.draws_in_backward for block in (drawing, hooked, followed, quiet)]
    assert found == [True, True, True, False]
    assert HostGenerators.now() == before


def test_buffers_that_an_evaluation_writes_to_are_noticed() -> None:
    def counted(m: Any, h: Tensor) -> Tensor:
        m.seen.add_(1)
        return h

    def replaced(m: Any, h: Tensor) -> Tensor:
        m.seen = m.seen + 1
        return h

    def the_same_twice(m: Any, h: Tensor) -> Tensor:
        m.seen = h.detach()[0, :2]
        return h

    def only_in_evaluation(m: Any, h: Tensor) -> Tensor:
        if not m.training:
            m.last = h.detach()
        return h

    def past_autograd(m: Any, h: Tensor) -> Tensor:
        m.seen.data.add_(1)
        return h

    def only_in_training(m: Any, h: Tensor) -> Tensor:
        return counted(m, h) if m.training else h

    found = []
    for act in (counted, replaced, the_same_twice, only_in_evaluation, past_autograd, only_in_training):
        block = Does(act)
        block.register_buffer("seen", torch.zeros(2))
        block.register_buffer("last", None, persistent=False)
        found.append(shapes_of(block)[0].manners.writes_in_evaluation)
        assert not any(buffer.any() for buffer in block.buffers()), "a copy is tried"
    assert found == [True] * 5 + [False]


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
