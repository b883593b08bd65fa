"""A module's forward taken apart: what is a chain computes the same, and what is none is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.errors import ConfigError
from pipeline.network.sequential import blocks_from
from pipeline.settings import plain_settings
from tests.support.data import message


class Written(nn.Module):
    """Two layers, and a forward given as a function of them and of x."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.full((8,), 1.5))
        self.shift: Tensor
        self.register_buffer("shift", torch.full((8,), 0.5))
        self.register_buffer("running", torch.ones(8))
        self.calls, self.kept = 0, list[Any]()
        self._written = forward

    def forward(self, x: Tensor) -> Any:
        return self._written(self, x)


def _plain(m: Any, x: Tensor) -> Any:
    return m.b(m.act(m.a(x)))


def _functions(m: Any, x: Tensor) -> Any:
    return m.b(F.dropout(F.relu(m.a(x)), 0.5, training=m.training))


def _in_place(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    x.mul_(2)
    F.relu_(x)
    return m.b(x)


def _bare_parameter(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x) * m.scale)


def _size_of_the_batch(m: Any, x: Tensor) -> Any:
    n = x.size(0)
    x = F.relu(m.a(x.view(n, -1)))
    return m.b(x.view(n, 8))


def _sides_of_the_input(m: Any, x: Tensor) -> Any:
    n, _ = x.shape
    return m.b(F.relu(m.a(x)).reshape(n, 8))


def _residual(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    return m.b(h + F.gelu(h))


def _drops_a_result(m: Any, x: Tensor) -> Any:
    torch._assert(x.shape[1] == 6, "six features")
    h = m.a(x)
    m.act(h)
    return m.b(h)


def _buffer_worked_on(m: Any, x: Tensor) -> Any:
    return m.b((m.a(x) - m.shift[None]) / m.shift.sqrt())


def _tensor_of_nothing(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x) + torch.arange(8.0))


def _methods_of_modules(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x).float()).type(torch.float32)


def _buffer(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    m.running.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return m.b(x * (m.running * 2 + 1))


def _named_as_methods(m: Any, x: Tensor) -> Any:
    return m.b(F.relu(m.a(x.to(torch.float32))).float())


FORWARDS = (
    *(_plain, _functions, _in_place, _bare_parameter, _size_of_the_batch, _sides_of_the_input, _residual),
    *(_drops_a_result, _buffer_worked_on, _buffer, _tensor_of_nothing, _methods_of_modules, _named_as_methods),
)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("training", [False, True])
def test_the_blocks_of_a_forward_compute_what_it_does(forward: Callable[[Any, Tensor], Any], training: bool) -> None:
    network, x = Written(forward).train(training), torch.randn(5, 6)
    blocks = nn.Sequential(*blocks_from(network)).train(training)
    results = []
    for module in (copy.deepcopy(network), blocks):
        torch.manual_seed(3)
        results.append([module(x.clone()), module(x.clone())])
    assert len(blocks) == 2
    assert all(map(torch.equal, *results))
    assert network.training == training, "tracing leaves the mode alone"


def test_defaults_of_a_forward_are_taken_as_they_are() -> None:
    class Masked(Written):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Any:
            return _plain(self, x if mask is None else x * mask) * scale

    network, x = Masked(_plain), torch.randn(4, 6)
    assert torch.equal(nn.Sequential(*blocks_from(network))(x), network(x))


def test_a_forward_of_an_instance_counts() -> None:
    network = Written(_plain)
    network.forward = lambda x: _plain(network, x) + 1  # type: ignore[method-assign]
    x = torch.randn(4, 6)
    assert torch.equal(nn.Sequential(*blocks_from(network))(x), network(x))


def test_buffers_are_read_when_the_blocks_run() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        m.shift.add_(1)
        return m.b(m.a(x) * (2 * m.shift))

    network = Written(forward)
    blocks, x = nn.Sequential(*blocks_from(copy.deepcopy(network))), torch.randn(4, 6)
    assert network.shift[0] == 0.5, "tracing changes nothing"
    for _ in range(3):
        assert torch.equal(blocks(x), network(x))


def test_children_may_be_called_as_methods_of_torchs_own_classes_are() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph, self.code, self.append, self.pop = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Any:
            x = self.graph(x)
            return self.pop(self.append(x + self.code(x)))

    network, x = Named(), torch.randn(4, 6)
    blocks = blocks_from(network)
    assert len(blocks) == 4
    assert torch.equal(nn.Sequential(*blocks)(x), network(x))


def test_a_piece_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = nn.Sequential(*blocks_from(Written(_residual)))
    for each in (blocks, copy.deepcopy(blocks)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            each(torch.randn(4, 7))
    assert capsys.readouterr().err == ""


def test_a_batch_folded_into_another_dimension_is_taken_apart_only_where_that_is_safe() -> None:
    """Between the views there are 5 rows a sample: nothing there may take them for the batch."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Any:
            n = x.size(0)
            x = self.b(F.relu(self.a(x.view(n * 5, 6))))
            return self.c(x.view(n, -1))

    network, x = Folded(), torch.randn(4, 5, 6)
    blocks = blocks_from(network)
    assert len(blocks) == 2
    assert torch.equal(nn.Sequential(*blocks)(x), network(x))


def _draws(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(x * 2 if torch.rand(()) < 0.5 else x)


def _counts(m: Any, x: Tensor) -> Any:
    m.calls += 1
    return _plain(m, x)


def _adds_to_a_buffer(m: Any, x: Tensor) -> Any:
    m.shift += 1
    return _plain(m, x)


def _keeps(m: Any, x: Tensor) -> Any:
    m.kept.append(x)
    return _plain(m, x)


def _freezes(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        x = m.a(x)
    return m.b(x)


def _in_half_precision(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return _plain(m, x)


def _switches(m: Any, x: Tensor) -> Any:
    m.act.eval()
    return _plain(m, x)


def _writes_to_a_tensor_of_nothing(m: Any, x: Tensor) -> Any:
    x, mean = m.a(x), torch.zeros(8)
    mean.add_(x.mean(0))
    return m.b(x - mean)


def _auxiliary(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return (m.b(x), m.act(x)) if m.training else m.b(x)


def _asserts(m: Any, x: Tensor) -> Any:
    assert x.ndim == 2
    return _plain(m, x)


def _noisy_in_training(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(x + 1 if m.training else x)


def _gives_a_dict(m: Any, x: Tensor) -> Any:
    return {"scores": _plain(m, x)}


class Sign(torch.autograd.Function):
    """Lets gradients through."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _binary(m: Any, x: Tensor) -> Any:
    return m.b(Sign.apply(m.a(x)))


def _looks_for_gradients(m: Any, x: Tensor) -> Any:
    return _plain(m, x * 2 if torch.is_grad_enabled() else x)


def _looks_at_the_type(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    return m.b(F.relu(x) if isinstance(x, Tensor) else x)


def _adds_in_place_to_a_second_name(m: Any, x: Tensor) -> Any:
    h = kept = m.a(x)
    h += 1
    return m.b(h * kept)


def _around_everything(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x)) + x[:, :3]


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (_draws, "the forward of Written draws random numbers that are no module's"),
        (_counts, "the forward of Written changes calls of the module itself"),
        (_adds_to_a_buffer, "the forward of Written changes shift of the module itself"),
        (_keeps, "the forward of Written changes kept of the module itself"),
        (_freezes, "child a is called below torch.no_grad or the like; let a child do that by itself"),
        (_in_half_precision, "child a is called below torch.autocast or the like; let a child do that by itself"),
        (_switches, "the forward of Written switches training mode, as .eval() does; do so outside of it"),
        (
            _writes_to_a_tensor_of_nothing,
            "makes a tensor of nothing; register it as a buffer when the module is built",
        ),
        (_auxiliary, "than in evaluation: leave out child act, which is called only in training"),
        (_asserts, "the forward of Written cannot be traced without data (TraceError"),
        (_noisy_in_training, "Written does other things in training than in evaluation"),
        (_binary, "Sign has a backward of its own; call it in a module of its own"),
        (_looks_for_gradients, "Written does other things in training than in evaluation"),
        (_looks_at_the_type, "Written cannot be taken apart: its pieces compute something else than it does"),
        (_adds_in_place_to_a_second_name, "its pieces compute something else than it does"),
        (_gives_a_dict, "the forward of Written gives a dict where a tensor is wanted"),
        (
            _around_everything,
            "the children of Written do not run one after the other: what it is given is used again by getitem, after "
            "child a",
        ),
    ],
)
def test_what_is_no_chain_is_told(forward: Callable[[Any, Tensor], Any], told: str) -> None:
    network = Written(forward)
    text = message(lambda: blocks_from(network), ConfigError)
    assert told in text
    assert text.endswith("give blocks_from an nn.Sequential, or train a list of modules, a block each")
    assert (network.calls, network.kept, float(network.shift.sum())) == (0, [], 4), "tracing leaves nothing behind"


def test_hooks_that_would_be_lost_are_told() -> None:
    for network in (Written(_plain), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))):
        network.register_forward_hook(lambda *_: None)
        text = message(lambda each=network: blocks_from(each), ConfigError)  # type: ignore[misc]
        assert "has forward hooks, which its children alone would not run" in text


def test_a_train_of_its_own_that_would_be_lost_is_told() -> None:
    class Frozen(Written):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.a.eval()
            return self

    class FrozenList(nn.Sequential):
        train = Frozen.train

    for network in (Frozen(_plain), FrozenList(nn.Linear(6, 4), nn.Linear(4, 3))):
        text = message(lambda each=network: blocks_from(each), ConfigError)  # type: ignore[misc]
        assert "has a method train of its own, which its children alone would not run" in text


def test_a_hook_of_a_layer_stays_with_it() -> None:
    network, seen = Written(_plain), []
    network.a.register_forward_hook(lambda *_: seen.append(1))
    nn.Sequential(*blocks_from(network))(torch.randn(2, 6))
    assert seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, by itself
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_left_out(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert len(blocks_from(wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))))) == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapper_with_hooks_is_told(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    wrapped.register_forward_hook(lambda *_: None)
    assert "has forward hooks" in message(lambda: blocks_from(wrapped), ConfigError)


def test_a_wrapped_child_is_taken_apart_as_the_child_is() -> None:
    trunk = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    assert len(blocks_from(Whole(nn.DataParallel(trunk)))) == len(blocks_from(Whole(trunk))) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, by itself
def test_a_child_that_is_to_be_compiled_is_not_compiled_yet() -> None:
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    trunk = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    assert len(blocks_from(Whole(cast(nn.Module, torch.compile(trunk, backend=backend))))) == 3
    assert not compiled


def test_children_may_have_the_names_of_methods() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.append, self.pop = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.pop(self.append(x))

    network, x = Odd(), torch.randn(2, 6)
    assert torch.equal(nn.Sequential(*blocks_from(network))(x), network(x))


def test_a_network_with_a_parametrized_number_is_taken_apart() -> None:
    network, x = Written(_bare_parameter), torch.randn(2, 6)
    parametrize.register_parametrization(network, "scale", nn.Softplus())
    blocks = blocks_from(network)
    assert len(blocks) == 2
    assert torch.equal(nn.Sequential(*blocks)(x), network(x))


def test_the_blocks_do_not_depend_on_the_callers_settings() -> None:
    with plain_settings():
        network = Written(_size_of_the_batch)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            assert len(blocks_from(network)) == 2
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_no_network_is_told() -> None:
    layers = [nn.Linear(6, 3)]
    assert "takes an nn.Module, not a list" in message(lambda: blocks_from(layers), ConfigError)  # type: ignore[arg-type]
    assert "ModuleList has no forward" in message(lambda: blocks_from(nn.ModuleList(layers)), ConfigError)


def test_tied_layers_are_told() -> None:
    text = message(lambda: blocks_from(Written(lambda m, x: m.b(m.a(m.a(x)[:, :6])))), ConfigError)
    assert "blocks 0 and 1 share the parameter body.a.weight" in text


class Unit(nn.Module):
    """Two layers with a forward of their own."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(self.two(torch.relu(self.one(x))))


class Trunk(nn.Module):
    def __init__(self, *units: nn.Module) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)

    def forward(self, x: Tensor) -> Any:
        return torch.sigmoid(self.units(x))


class Whole(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.trunk(x))


@pytest.mark.parametrize(
    ("trunk", "blocks"),
    [
        (lambda: Unit(), 3),  # used once: its layers
        (lambda: Trunk(Unit(), Unit()), 3),  # used again: a block each
        (lambda: Trunk(Trunk(Unit(), Unit()), Trunk(Unit(), Unit())), 5),  # a class used again that chains such blocks
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), 3),
        (lambda: nn.LSTM(6, 6), 2),  # torch's own are not looked into
    ],
)
def test_children_are_taken_apart_down_to_what_is_used_again(trunk: Callable[[], nn.Module], blocks: int) -> None:
    class First(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            out = self.inner(x)
            return out[0] if isinstance(self.inner, nn.LSTM) else out

    network, x = Whole(First(trunk()) if trunk().__class__ is nn.LSTM else trunk()), torch.randn(4, 6)
    found = blocks_from(network)
    assert len(found) == blocks
    assert torch.equal(nn.Sequential(*found)(x), network(x))
