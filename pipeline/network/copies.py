"""Copies of a user's modules, to try them out on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["copied"]

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """A deep copy, also of a module that keeps results of its last forward.

    torch copies leaves of autograd's graph only. What is computed anew before each forward, such as the weight of
    `torch.nn.utils.weight_norm` or of a pruned layer, is no leaf: the copy gets its values.
    """
    computed = (value for each in module.modules() for value in _tensors(vars(each)) if not value.is_leaf)
    made = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    for parameter in made.parameters():
        if not parameter.is_leaf:  # of TorchScript, which copies by a computation
            parameter.detach_().requires_grad_()
    return made


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a module's attributes and of the collections among them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors(each)
