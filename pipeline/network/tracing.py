"""A module's forward as a graph of calls, traced without data; its children are not looked into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.errors import first_line
from pipeline.network.kinds import own_manners
from pipeline.seeding import HostGenerators

__all__ = ["NotAChain", "Shell", "path_of", "said", "traced"]


class NotAChain(Exception):
    """A forward that cannot be taken apart; the message says why."""


def _check_own(module: nn.Module) -> None:
    """Raise NotAChain for what a call of the module does beside its forward."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise NotAChain(f"{name} is compiled TorchScript")
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise NotAChain(f"{name} has no forward")
    own = own_manners(module)
    if own:
        raise NotAChain(f"{name} has {own}, which its children alone would not run")
    if type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule):
        raise NotAChain(f"{name} has a __call__ of its own")


class Shell(nn.Module):
    """Asks a module for its forward alone, with one argument, whatever the forward's defaults."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner.forward(x)

    def constants(self) -> list[Tensor]:
        """Tensors that the forward makes of nothing, which tracing keeps here."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


class _Tracer(fx.Tracer):
    """Looks into no child, and at no value of a buffer; refuses calls in a mode that a graph cannot keep."""

    proxy_buffer_attributes = True  # else arithmetic on buffers would be done once, when tracing

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self._outside, self._training = _modes(training), training

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        changed = [name for name, value in _modes(self._training).items() if value != self._outside[name]]
        if changed and kind.startswith("call"):
            raise NotAChain(f"{said(node)} is called below {changed[0]} or the like; let a child do that by itself")
        return node


def _modes(training: bool) -> dict[str, Any]:
    """What changes the meaning of a call, beside its arguments; nobody asks for gradients in evaluation."""
    kinds = ("cpu", "cuda")
    return {
        "torch.no_grad": training and (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch.autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds],
    }


def traced(module: nn.Module) -> tuple[fx.Graph, Shell]:
    """The forward in training, with every value that is another one in evaluation chosen when it is run.

    What it calls and reads lies below `inner` of the shell, which holds the module; the module is left as it was.

    Raises NotAChain if it cannot be traced, or does something in training that it does not do in evaluation.
    """
    _check_own(module)
    (training, shell), (evaluation, other_shell) = (_trace(module, mode) for mode in (True, False))
    if _flow(training) != _flow(evaluation) or not _same_constants(shell, other_shell):
        what = f"{type(module).__name__} does other things in training than in evaluation"
        raise NotAChain(f"{what}{_first_alone(training, evaluation)}")
    for one, other in zip(list(training.nodes), evaluation.nodes, strict=True):
        _choose_when_run(training, one, other)
    return training, shell


def _same_constants(one: Shell, other: Shell) -> bool:
    pairs = zip(one.constants(), other.constants(), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _first_alone(training: fx.Graph, evaluation: fx.Graph) -> str:
    """For people, the first call that one of the two makes and the other does not; empty if there is none."""
    made = [[said(node) for node in graph.nodes if node.op.startswith("call")] for graph in (training, evaluation)]
    for mine, theirs, mode in ((*made, "training"), (*made[::-1], "evaluation")):
        alone = next(iter((Counter(mine) - Counter(theirs)).keys()), None)
        if alone is not None:
            return f": leave out {alone}, which is called {'more often in' if alone in theirs else 'only in'} {mode}"
    return ""


def _flow(graph: fx.Graph) -> list[tuple[str, Any, list[int]]]:
    """What is called, and on the results of which calls."""
    at = {node: index for index, node in enumerate(graph.nodes)}
    return [(node.op, node.target, [at[each] for each in node.all_input_nodes]) for node in graph.nodes]


def _trace(module: nn.Module, mode: bool) -> tuple[fx.Graph, Shell]:
    name, tables, drawn = type(module).__name__, _tables(module), HostGenerators.now()
    try:
        with _mode(module, mode), torch.set_grad_enabled(mode), _own_backwards_told():
            shell = Shell(module)
            graph = _graph_of(shell, mode)
            if any(each.training != mode for each in module.modules()):
                raise NotAChain(f"the forward of {name} switches training mode, as .eval() does; do so outside of it")
    finally:
        changed = [each for each in map(_put_back, tables) if each]
        draws = HostGenerators.now() != drawn
        drawn.restore()
    if draws:
        raise NotAChain(f"the forward of {name} draws random numbers that are no module's")
    if changed:
        raise NotAChain(f"the forward of {name} changes {changed[0]} of the module itself")
    return graph, shell


def _graph_of(shell: Shell, mode: bool) -> fx.Graph:
    try:
        return _Tracer(training=mode).trace(shell)
    except NotAChain:
        raise
    except Exception as error:  # whatever the user's code makes of a stand-in for a tensor
        why, name = f"{type(error).__name__}: {first_line(error)}", type(shell.inner).__name__
        raise NotAChain(f"the forward of {name} cannot be traced without data ({why})") from error


_Table = tuple[str, dict[Any, Any] | list[Any], list[tuple[Any, Any]]]
"""Something of a module's that holds others: what it is called, if it is an attribute, it, and what was in there."""


def _tables(module: nn.Module) -> list[_Table]:
    """Where a forward might leave something behind."""
    found: list[_Table] = []
    for each in module.modules():
        own = vars(each)
        found.append(("", own, _items(own)))
        found += [(name, at, _items(at)) for name, at in own.items() if isinstance(at, dict | list)]
    return found


def _items(table: dict[Any, Any] | list[Any]) -> list[tuple[Any, Any]]:
    return list(table.items() if isinstance(table, dict) else enumerate(table))


def _put_back(table: _Table) -> str:
    """Let it hold what it did; what had been changed, or nothing."""
    name, at, before = table
    pairs = zip_longest(_items(at), before, fillvalue=("", None))
    changed = [new[0] or old[0] for new, old in pairs if not _is(new, old)]
    if not changed:
        return ""
    at.clear()
    at.update(before) if isinstance(at, dict) else at.extend(value for _, value in before)
    return str(changed[0]) if not name or name.startswith("_") else name


def _is(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether key and value are the same, numbers by what they are."""
    same = one[1] is other[1] or (isinstance(other[1], int | float) and one[1] == other[1])
    return one[0] == other[0] and bool(same)


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


def path_of(node: fx.Node) -> str:
    """Of a child, parameter or buffer, in the module."""
    return str(node.target).removeprefix("inner.")


def said(node: fx.Node) -> str:
    """A call, for people."""
    if node.op == "call_module":
        return f"child {path_of(node)}"
    return str(getattr(node.target, "__name__", node.target))
