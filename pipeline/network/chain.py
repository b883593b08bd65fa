"""A module's forward as a chain of pieces, each from one tensor to one tensor.

The forward of the module itself is traced, its children are not looked into. Where a single value is all that the rest
needs, the chain may be cut:

    x ─> conv ─> relu ─┬─> conv ─> norm ─> + ─> relu ─> fc ─>        pieces: conv | relu | conv norm + | relu | fc
                       └─────────────────> +

A piece that is one child is that child; any other is a `torch.fx.GraphModule` of its calls, around the same children.
So the chain computes what the module does by construction, with one exception that is shown by a run: where later
pieces ask for the size of the batch, they take it from what they are given.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.errors import first_line
from pipeline.network.copies import copied
from pipeline.network.kinds import is_layer, is_tail

__all__ = ["Chain", "NotAChain", "Piece", "chain_of", "same_by_run"]


class NotAChain(Exception):
    """A forward that cannot be taken apart; the message says why."""


@dataclass(frozen=True)
class Piece:
    """A part of a forward."""

    name: str  # of the child, or of the calls
    module: nn.Module
    child: bool  # whether it is a child of the module, as it is
    layer: bool  # whether it has weights of a layer, not just numbers to add or to multiply by
    tail: bool  # whether it is nothing but dropout, pooling or flattening


@dataclass(frozen=True)
class Chain:
    """A forward taken apart."""

    pieces: tuple[Piece, ...]
    hold: Callable[[], str]  # says what keeps pieces with several layers in one


_LAYERS = {
    *(F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.embedding, torch.einsum, torch.addmm, torch.baddbmm),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.matmul, torch.mm, torch.bmm, operator.matmul),
    *("matmul", "mm", "bmm", "__matmul__"),
}
"""Functions that make a layer of a bare parameter."""

_SHRINKING = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d),
    *(F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(torch.flatten, torch.max_pool2d, torch.dropout, torch.adaptive_avg_pool1d, "flatten"),
}
"""Functions that a local loss taps before, where nothing else follows."""


def chain_of(module: nn.Module) -> Chain:
    """The pieces of a module's forward, in order.

    Raises NotAChain if the forward cannot be traced, is not from one tensor to one tensor, or does something in
    training that it does not do in evaluation.
    """
    _check_own(module)
    chain = _Chain(module, _traced(module))
    pieces = chain.pieces(rewrite=True)
    if chain.asks_batch and not same_by_run(module, [piece.module for piece in pieces]):
        pieces = chain.pieces(rewrite=False)
    return Chain(tuple(pieces), chain.hold)


def _check_own(module: nn.Module) -> None:
    """Raise NotAChain for what a call of the module does beside its forward."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise NotAChain(f"{name} is compiled TorchScript")
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise NotAChain(f"{name} has no forward")
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    found = [kind for kind in kinds if getattr(module, f"_{kind}_hooks", None)]
    if found:
        raise NotAChain(f"{name} has {found[0].replace('_', ' ')} hooks, which its children alone would not run")
    if type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule):
        raise NotAChain(f"{name} has a __call__ of its own")


class _Shell(nn.Module):
    """Asks a module for its forward alone, with one argument, whatever the forward's defaults."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner.forward(x)


class _Tracer(fx.Tracer):
    """Looks into no child."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(module: nn.Module) -> fx.Graph:
    """The forward in training, with every value that is another one in evaluation chosen when it is run."""
    training, evaluation = (_trace(module, mode) for mode in (True, False))
    if _flow(training) != _flow(evaluation):
        raise NotAChain(f"{type(module).__name__} does other things in training than in evaluation")
    for one, other in zip(list(training.nodes), evaluation.nodes, strict=True):
        _choose_when_run(training, one, other)
    return training


def _flow(graph: fx.Graph) -> list[tuple[str, Any, list[int]]]:
    """What is called, and on the results of which calls."""
    at = {node: index for index, node in enumerate(graph.nodes)}
    return [(node.op, node.target, [at[each] for each in node.all_input_nodes]) for node in graph.nodes]


def _trace(module: nn.Module, mode: bool) -> fx.Graph:
    name = type(module).__name__
    before = _state(module)
    with _mode(module, mode), torch.random.fork_rng(devices=[]):
        drawn = _drawn()
        try:
            graph: fx.Graph = _Tracer().trace(_Shell(module))
        except Exception as error:  # whatever the user's code makes of a stand-in for a tensor
            raise NotAChain(
                f"the forward of {name} cannot be traced without data ({type(error).__name__}: {first_line(error)})"
            ) from error
        if _drawn() != drawn:
            raise NotAChain(f"the forward of {name} draws random numbers that are no module's")
    if _state(module) != before:
        raise NotAChain(f"the forward of {name} changes the module itself")
    return graph


def _state(module: nn.Module) -> list[tuple[str, object]]:
    """What a forward might leave behind, by identity; modes are somebody else's."""
    return [
        (f"{path}.{key}", value if isinstance(value, int | float) else id(value))
        for path, each in module.named_modules()
        for key, value in vars(each).items()
        if key != "training"
    ]


def _drawn() -> tuple[bytes, Any, bytes]:
    """Whether random numbers have been drawn shows here."""
    state = np.random.get_state()  # noqa: NPY002  the one that modules draw from
    return torch.random.get_rng_state().numpy().tobytes(), random.getstate(), repr(state).encode()


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


class _Chain:
    """The graph of a forward, and where it can be cut."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module, self.name = module, type(module).__name__
        _fetch_where_used(graph)
        self._source, *self._body, output = list(graph.nodes)
        result = output.args[0]
        if not isinstance(result, fx.Node):
            kind = type(result).__name__.removeprefix("immutable_")
            raise NotAChain(f"the forward of {self.name} gives a {kind} where a tensor is wanted")
        self._result = result
        self._batch = {node for node in self._body if _is_batch_size(node)}
        self.asks_batch = (
            False  # whether a piece of the last `pieces` takes the size of the batch from what it is given
        )

    def pieces(self, *, rewrite: bool) -> list[Piece]:
        """Cut wherever it can be; with `rewrite` the size of the batch is asked of what a piece is given."""
        free = self._batch if rewrite else set[fx.Node]()
        last = self._last_uses(free)
        pieces, start, given, live = list[Piece](), 0, self._source, {self._source}
        self.asks_batch = False
        for position, node in enumerate(self._body):
            live = {value for value in (*live, node) if last.get(value, -1) > position}
            if len(live) == 1 and live != {given} and not any(map(_is_no_tensor, live)):
                (handed_on,) = live
                pieces.append(self._piece(self._body[start : position + 1], given, handed_on))
                start, given = position + 1, handed_on
        if start < len(self._body):  # such as an operation in place whose result nobody takes
            pieces.append(self._piece(self._body[start:], given, self._result))
        return pieces

    def _last_uses(self, free: set[fx.Node]) -> dict[fx.Node, int]:
        """Where each value is needed for the last time."""
        last = {value: at for at, node in enumerate(self._body) for value in node.all_input_nodes if value not in free}
        return {**last, self._result: len(self._body)}

    def _piece(self, nodes: Sequence[fx.Node], given: fx.Node, handed_on: fx.Node) -> Piece:
        if len(nodes) == 1 and nodes[0].op == "call_module" and nodes[0].args == (given,) and not nodes[0].kwargs:
            name = _path(nodes[0])
            child = self.module.get_submodule(name)
            return Piece(name, child, True, is_layer(child), is_tail(child))
        graph = fx.Graph()
        known = {given: graph.placeholder("x")}

        def of(value: fx.Node) -> fx.Node:
            if value not in known:
                assert value in self._batch, "all else is made in this piece"
                self.asks_batch = True
                known[value] = graph.call_method("size", (known[given], 0))
            return known[value]

        for node in nodes:
            known[node] = graph.node_copy(node, of)
            if node.op in ("call_module", "get_attr"):
                known[node].target = _path(node)
        graph.output(known[handed_on])
        layer = any(self._is_layer(node) for node in nodes)
        shrinks = all(node.target in _SHRINKING or node.op == "get_attr" for node in nodes)
        return Piece(_name(nodes), fx.GraphModule(self.module, graph), False, layer, shrinks)

    def _is_layer(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return is_layer(self.module.get_submodule(_path(node)))
        weighed = any(value.op == "get_attr" for value in node.all_input_nodes)
        return node.op.startswith("call") and node.target in _LAYERS and weighed

    def hold(self) -> str:
        """What keeps the children from being a chain: the value that is wanted longest after the first of them."""
        last = self._last_uses(self._batch)
        first = next(at for at, node in enumerate(self._body) if self._is_layer(node))
        early = [self._source, *self._body[:first]]
        value = max(early, key=lambda value: last.get(value, -1))
        user = self._body[min(last[value], len(self._body) - 1)]
        what = "what it is given" if value is self._source else f"the result of {_said(value)}"
        return f"{what} is used again by {_said(user)}, after {_said(self._body[first])}"


def _fetch_where_used(graph: fx.Graph) -> None:
    """Let every user of a parameter fetch it, so that none is held meanwhile."""
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        for user in list(node.users):
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.get_attr(node.target))
        graph.erase_node(node)


def _is_sizes(value: Any) -> bool:
    """All sides of a tensor: `x.shape` or `x.size()`."""
    if not isinstance(value, fx.Node):
        return False
    return bool(value.target is getattr and value.args[1] == "shape") or (
        value.target == "size" and len(value.args) == 1
    )


def _is_batch_size(node: fx.Node) -> bool:
    if node.target == "size":
        return bool(node.args[1:] == (0,) and not node.kwargs)
    return bool(node.target is operator.getitem and _is_sizes(node.args[0]) and node.args[1] == 0)


def _is_no_tensor(node: fx.Node) -> bool:
    """Sides of a tensor, or a tuple whose members are taken one by one."""
    if node.target == "size" or _is_sizes(node):
        return True
    taken = [user.target is operator.getitem and type(user.args[1]) is int for user in node.users]
    return bool(taken) and all(taken)


def _path(node: fx.Node) -> str:
    """Of a child or parameter, in the module."""
    return str(node.target).removeprefix("inner.")


def _name(nodes: Sequence[fx.Node]) -> str:
    """Of calls in one piece: the first child among them, or the last function."""
    children = [_path(node) for node in nodes if node.op == "call_module"]
    functions = [_said(node) for node in nodes if node.op.startswith("call")]
    return f"{children[0]}_and_more" if children else functions[-1]


def _said(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"child {_path(node)}"
    return str(getattr(node.target, "__name__", node.target))


def same_by_run(module: nn.Module, pieces: Sequence[nn.Module]) -> bool:
    """Whether the pieces compute what the module does, to the bit, on batches of two sizes that it takes.

    False where no batch is found that it takes.
    """
    alone = copied(nn.ModuleList([module, nn.Sequential(*pieces)])).eval()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for shape in _shapes_to_try(module):
            try:
                batches = [torch.randn(size, *shape, device=device) for size in (2, 3)]
                wanted = [alone[0](batch) for batch in batches]
            except Exception:
                continue
            try:
                return all(torch.equal(alone[1](x), y) for x, y in zip(batches, wanted, strict=True))
            except (RuntimeError, TypeError, ValueError, IndexError):
                return False
    return False


def _shapes_to_try(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Of a sample that the first layer of a network takes."""
    sides = [side for side in (getattr(module, "image_size", None),) if isinstance(side, int)] + [
        64,
        32,
        28,
        224,
        16,
        8,
        96,
        128,
    ]
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            axes = len(layer.kernel_size)
            yield from ((layer.in_channels, *(side,) * axes) for side in sides)
        elif isinstance(layer, nn.Linear):
            features = layer.in_features
            yield (features,)
            yield (5, features)
            for channels in (1, 3):
                side = math.isqrt(features // channels)
                if side * side * channels == features:
                    yield (channels, side, side)
        elif isinstance(layer, nn.RNNBase):
            yield (5, layer.input_size)
        else:
            continue
        return
