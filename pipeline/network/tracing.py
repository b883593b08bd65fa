"""The forward of a module as a graph of calls, recorded with a stand-in for the tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import first_line
from pipeline.seeding import HostGenerators

__all__ = ["NotAChain", "traced"]


class NotAChain(Exception):
    """A forward that cannot be taken apart; the message says why."""


def traced(module: nn.Module) -> fx.Graph:
    """The forward in training, with every value that is another one in evaluation chosen when it is run.

    Raises NotAChain for what a graph of calls would not hold.
    """
    training, evaluation = (_trace(module, mode) for mode in (True, False))
    if _flow(training) != _flow(evaluation):
        raise NotAChain(f"{type(module).__name__} does other things in training than in evaluation")
    for one, other in zip(list(training.nodes), evaluation.nodes, strict=True):
        _choose_when_run(training, one, other)
    return training


class _Shell(nn.Module):
    """Asks a module for its forward alone, with one argument, whatever the forward's defaults."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner.forward(x)


class _Tracer(fx.Tracer):
    """Looks into no child; buffers are stood in for as parameters are, so that nothing is computed with them.

    Attributes:
        below: a call below settings of the forward's own, which a graph does not keep.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._settings, self.below = _settings(), ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if kind.startswith("call") and _settings() != self._settings:
            self.below = str(getattr(target, "__name__", target)).removeprefix("inner.")
        return super().create_node(kind, target, *args, **kwargs)


def _settings() -> tuple[object, ...]:
    """What a context manager in a forward may set for what is computed there."""
    autocast = [(torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in ("cpu", "cuda")]
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _trace(module: nn.Module, mode: bool) -> fx.Graph:
    name = type(module).__name__
    with _mode(module, mode), torch.set_grad_enabled(mode):
        before, drawn, tracer = _Kept(module), HostGenerators.now(), _Tracer()
        try:
            with _own_backwards_told():
                graph: fx.Graph = tracer.trace(_Shell(module))
        except Exception as error:  # whatever the user's code makes of a stand-in for a tensor
            raise NotAChain(
                f"the forward of {name} cannot be traced without data ({type(error).__name__}: {first_line(error)})"
            ) from error
        finally:
            changed, draws = before.put_back(), HostGenerators.now() != drawn
            drawn.restore()
    if draws:
        raise NotAChain(f"the forward of {name} draws random numbers that are no module's")
    if changed:
        raise NotAChain(f"the forward of {name} changes the module itself")
    if tracer.below:
        raise NotAChain(
            f"the forward of {name} calls {tracer.below} below settings of its own, such as torch.no_grad or "
            "torch.autocast, which its children alone would not have"
        )
    if any(node.op == "get_attr" and not node.target.startswith("inner.") for node in graph.nodes):
        raise NotAChain(f"the forward of {name} makes a tensor out of nothing, which would be made only once")
    return graph


@contextmanager
def _own_backwards_told() -> Iterator[None]:
    """Refuse functions with a backward of their own: a stand-in passes through their forward alone."""
    function = torch.autograd.Function
    own = vars(function).get("apply")

    def refused(cls: type, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{cls.__name__} has a backward of its own; call it in a module of its own")

    setattr(function, "apply", classmethod(refused))  # noqa: B010  as mypy wants it
    try:
        yield
    finally:
        if own is None:
            delattr(function, "apply")
        else:
            setattr(function, "apply", own)  # noqa: B010


class _Kept:
    """What a forward might leave behind in a module, beside numbers in its tensors."""

    _DEPTH = 3  # of collections in collections

    def __init__(self, module: nn.Module) -> None:
        self._held: dict[int, tuple[Any, Any]] = {}  # collections and what was in them
        self._tensors: list[tuple[Tensor, int]] = []  # and how often they had been written to
        for each in module.modules():
            self._keep(vars(each), self._DEPTH)

    def _keep(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor) and not value.is_inference():
            self._tensors.append((value, value._version))
        if depth and isinstance(value, dict | list | set | deque) and id(value) not in self._held:
            self._held[id(value)] = value, value.copy()
            for each in _members(value):
                self._keep(each, depth - 1)

    def put_back(self) -> bool:
        """Undo what was done to collections; whether anything was done, to tensors too."""
        changed = any(tensor._version != version for tensor, version in self._tensors)
        for home, before in self._held.values():
            if _marks(home) == _marks(before):
                continue
            changed = True
            home.clear()
            home.update(before) if isinstance(home, dict | set) else home.extend(before)
        return changed


def _members(collection: Any) -> list[Any]:
    return [*collection, *collection.values()] if isinstance(collection, dict) else list(collection)


def _marks(collection: Any) -> list[object]:
    """By which members are known: numbers and text by value, all else by identity."""
    return [each if isinstance(each, int | float | str) else id(each) for each in _members(collection)]


def _flow(graph: fx.Graph) -> list[tuple[str, Any, list[int]]]:
    """What is called, and on the results of which calls."""
    at = {node: index for index, node in enumerate(graph.nodes)}
    return [(node.op, node.target, [at[each] for each in node.all_input_nodes]) for node in graph.nodes]


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """The mode of a module and of all below, set without asking them, and put back."""
    before = [(each, each.training) for each in module.modules()]
    for each, _ in before:
        each.training = training
    try:
        yield
    finally:
        for each, was in before:
            each.training = was


def _chosen(training: bool, one: Any, other: Any) -> Any:
    return one if training else other


def _choose_when_run(graph: fx.Graph, one: fx.Node, other: fx.Node) -> None:
    """Let `one` take the constants of its twin in evaluation where they differ."""

    def merged(mine: Any, theirs: Any) -> Any:
        if isinstance(mine, fx.Node) or mine is theirs:
            return mine
        if isinstance(mine, tuple | list) and isinstance(theirs, tuple | list) and len(mine) == len(theirs):
            return type(mine)(merged(a, b) for a, b in zip(mine, theirs, strict=True))
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
            return {key: merged(value, theirs[key]) for key, value in mine.items()}
        if isinstance(mine, slice) and isinstance(theirs, slice):
            ends = zip((mine.start, mine.stop, mine.step), (theirs.start, theirs.stop, theirs.step), strict=True)
            return slice(*(merged(a, b) for a, b in ends))
        if mine == theirs:
            return mine
        with graph.inserting_before(one):
            return graph.call_function(_chosen, (graph.get_attr("inner.training"), mine, theirs))

    args = tuple(merged(a, b) for a, b in zip(one.args, other.args, strict=True))
    kwargs = {key: merged(value, other.kwargs[key]) for key, value in one.kwargs.items()}
    if args != one.args or kwargs != one.kwargs:
        one.args, one.kwargs = args, kwargs
