"""A module's forward as a chain of pieces, each from one tensor to one tensor.

The forward of the module itself is traced, its children are not looked into. Where a single value is all that the rest
needs, the chain may be cut:

    x ─> conv ─> relu ─┬─> conv ─> norm ─> + ─> relu ─> fc ─>        pieces: conv | relu | conv norm + | relu | fc
                       └─────────────────> +

A piece that is one child is that child; any other is a `torch.fx.GraphModule` of its calls, around the same children.
So the chain computes what the module does by construction, with two exceptions that are shown by a run: where later
pieces ask for the size of the batch, they take it from what they are given; and a tensor that a forward makes of
nothing, such as `torch.arange(8.0)`, is made once, and kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pipeline.network.kinds import is_layer, is_tail, unwrapped
from pipeline.network.proof import same_by_run
from pipeline.network.tracing import NotAChain, Shell, path_of, said, traced

__all__ = ["Chain", "NotAChain", "Piece", "chain_of"]


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
    chain = _Chain(module, *traced(module))
    pieces = chain.pieces(rewrite=True)
    if chain.asks_batch and not same_by_run(module, [piece.module for piece in pieces]):
        pieces = chain.pieces(rewrite=False)
    if chain.makes_tensors and not same_by_run(module, [piece.module for piece in pieces]):
        raise NotAChain(
            f"the forward of {chain.name} makes a tensor of nothing; register it as a buffer when the module is built"
        )
    return Chain(tuple(pieces), chain.hold)


class _Calls(fx.GraphModule):
    """Calls in one piece. Where one fails, torch's own class prints a traceback, even if the error is handled."""

    def recompile(self) -> Any:
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]  # an instance has its own class
        return code


class _Chain:
    """The graph of a forward, and where it can be cut."""

    def __init__(self, module: nn.Module, graph: fx.Graph, shell: Shell) -> None:
        self.module, self.name, self._shell = module, type(module).__name__, shell
        self.makes_tensors = bool(shell.constants())
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
            name = path_of(nodes[0])
            child = unwrapped(self.module.get_submodule(name))
            return Piece(name, child, True, is_layer(child), is_tail(child))
        graph, root = fx.Graph(), nn.Module()
        root.training = self.module.training
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
                known[node].target = self._lend(root, node)
        graph.output(known[handed_on])
        layer = any(self._is_layer(node) for node in nodes)
        shrinks = all(node.target in _SHRINKING or node.op == "get_attr" for node in nodes)
        return Piece(_name(nodes), _Calls(root, graph), False, layer, shrinks)

    def _lend(self, root: nn.Module, node: fx.Node) -> str:
        """Let `root` have what a node asks for; returns the path there, which hides nothing of a GraphModule's."""
        first, *rest = path_of(node).split(".")
        name = f"{first}_" if first != "training" and hasattr(fx.GraphModule, first) else first
        holder = self.module if str(node.target).startswith("inner.") else self._shell
        setattr(root, name, getattr(holder, first))
        return ".".join([name, *rest])

    def _is_layer(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return is_layer(self.module.get_submodule(path_of(node)))
        weighed = any(value.op == "get_attr" for value in node.all_input_nodes)
        return node.op.startswith("call") and node.target in _LAYERS and weighed

    def hold(self) -> str:
        """What keeps the children from being a chain: the value that is wanted longest after the first of them."""
        last = self._last_uses(self._batch)
        first = next(at for at, node in enumerate(self._body) if self._is_layer(node))
        early = [self._source, *self._body[:first]]
        value = max(early, key=lambda value: last.get(value, -1))
        user = self._body[min(last[value], len(self._body) - 1)]
        what = "what it is given" if value is self._source else f"the result of {said(value)}"
        return f"{what} is used again by {said(user)}, after {said(self._body[first])}"


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


def _name(nodes: Sequence[fx.Node]) -> str:
    """Of calls in one piece: the first child among them, or the last function."""
    children = [path_of(node) for node in nodes if node.op == "call_module"]
    functions = [said(node) for node in nodes if node.op.startswith("call")]
    return f"{children[0]}_and_more" if children else functions[-1]
