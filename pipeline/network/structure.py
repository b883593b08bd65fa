"""What a user's blocks are made of, as text that is the same in every process which has built the same ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from pipeline.network.tracing import said

__all__ = ["Part", "first_difference", "parts_of"]

Part = list[str]
"""A module: its place, what it is, and `lazy` where it has not found its sizes yet."""

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def parts_of(blocks: Sequence[nn.Module]) -> list[Part]:
    """Every module in them: its class, what it says of itself, its own parameters and buffers. No value counts."""
    return [
        [f"{index}.{path}".removesuffix("."), _described(module), *(["lazy"] if _is_lazy(module) else [])]
        for index, block in enumerate(blocks)
        for path, module in block.named_modules()
    ]


def first_difference(mine: Sequence[Part], theirs: Sequence[Part]) -> tuple[str, str] | None:
    """What differs first, as here and as there; None where all is the same.

    A lazy layer may have its sizes in one of them, as where weights have been loaded.
    """
    for here, there in zip_longest(mine, theirs):
        half = here is not None and there is not None and here[0] == there[0] and len(here) != len(there)
        if here != there and not half:
            return _told(here), _told(there)
    return None


def _told(part: Part | None) -> str:
    return "no further module" if part is None else f"{part[1]} at {part[0]}"


def _described(module: nn.Module) -> str:
    told = [_own_words(module), *_tensors(module)]
    return f"{type(module).__name__}({', '.join(each for each in told if each)})"


def _own_words(module: nn.Module) -> str:
    """What a module says of itself, without what holds in one process alone, such as addresses and values."""
    known = type(module).extra_repr.__module__.startswith(("torch.", "pipeline."))
    holds = any(True for _ in _own(module))
    try:
        if isinstance(module, fx.GraphModule):
            words = " ".join(said(node) for node in module.graph.nodes if node.op.startswith("call"))
        elif isinstance(module, nn.ParameterList | nn.ParameterDict) or (holds and not known):
            words = ""  # it may tell on which device its tensors are, or a user's own class what is in them
        else:
            words = module.extra_repr()
    except Exception:  # whatever the user's own code raises
        words = ""
    return _ADDRESS.sub("0x", " ".join(words.split()))


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _is_lazy(module: nn.Module) -> bool:
    return any(is_lazy(tensor) for _, tensor in _own(module))


def _tensors(module: nn.Module) -> Iterator[str]:
    for name, tensor in _own(module):
        frozen = " frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
        yield f"{name} without a size" if is_lazy(tensor) else f"{name} {list(tensor.shape)}{frozen}"
