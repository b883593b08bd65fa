"""What a user's blocks are made of, as text that is the same in every process which has built the same ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from pipeline.network.tracing import said

__all__ = ["Part", "first_difference", "parts_of"]

Part = list[str]
"""A module: its place, its class, and piece by piece what it says of itself and which tensors it has."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_TELL_SETTINGS = ("torch.nn.", "torchvision.", "pipeline.")  # modules whose words are settings, the same everywhere
_SIZELESS = "without a size"
_PLACE = 2  # pieces come after place and class


def parts_of(blocks: Sequence[nn.Module]) -> list[Part]:
    """Every module in them. No value of a tensor counts, nor what a class of the user's own says or keeps."""
    return [
        [f"{index}.{path}".removesuffix("."), type(module).__name__, *_words(module), *_tensors(module)]
        for index, block in enumerate(blocks)
        for path, module in block.named_modules()
    ]


def first_difference(mine: Sequence[Part], theirs: Sequence[Part]) -> tuple[str, str] | None:
    """What differs first, as here and as there; None where all is the same.

    A lazy layer may have its sizes in one of them, as where weights have been loaded.
    """
    for here, there in zip_longest(mine, theirs):
        if here == there:
            continue
        if here is None or there is None or here[:_PLACE] != there[:_PLACE]:
            if here is not None and there is not None and here[0] == there[0] and _is_lazy(here) != _is_lazy(there):
                continue  # its class is another one from then on
            return _named(here), _named(there)
        if _is_lazy(here) == _is_lazy(there):
            ours, others = next(pair for pair in zip_longest(here, there) if pair[0] != pair[1])
            return _named(here, ours or "no more"), _named(there, others or "no more")
    return None


def _named(part: Part | None, piece: str = "") -> str:
    if part is None:
        return "no further module"
    return f"{part[1]} at {part[0]}" + (f" with {piece}" if piece else "")


def _is_lazy(part: Part) -> bool:
    return any(piece.endswith(_SIZELESS) for piece in part)


def _words(module: nn.Module) -> Iterator[str]:
    """What a module of torch's says of itself, or which calls a forward that was taken apart makes.

    A user's own class may say anything, such as in which process it is, and others what is in their tensors.
    """
    if isinstance(module, fx.GraphModule):
        yield from (_call(node) for node in module.graph.nodes if node.op.startswith("call"))
    elif not isinstance(module, nn.ParameterList | nn.ParameterDict):  # which tell devices
        told, words = type(module).extra_repr, ""
        if str(getattr(told, "__module__", "")).startswith(_TELL_SETTINGS):
            with contextlib.suppress(Exception):  # of what a user's class has made of one of torch's
                words = told(module)
        if words and "tensor(" not in words:
            yield _ADDRESS.sub("0x", " ".join(words.split()))


def _call(node: fx.Node) -> str:
    constants = [_constant(value) for value in node.args]
    constants += [f"{name}={_constant(value)}" for name, value in node.kwargs.items()]
    return f"{said(node)}({', '.join(constants)})"


def _constant(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, fx.Node):
        return "x"
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype)
    return repr(value) if plain else type(value).__name__


def _tensors(module: nn.Module) -> Iterator[str]:
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        yield f"{name} {_SIZELESS}" if is_lazy(tensor) else f"{name} {_described(tensor)}"


def _described(tensor: Tensor) -> str:
    frozen = " frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
    number = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{number}{frozen}"
