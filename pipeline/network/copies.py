"""Copies of a user's modules, to try them out on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

__all__ = ["copied"]

M = TypeVar("M", bound=nn.Module)

_COPIED = (torch.strided, torch.sparse_coo)  # layouts of tensors that `copy.deepcopy` takes


def copied(module: M) -> M:
    """A deep copy, also of a module that keeps results of its last forward, a lock or an open file.

    torch copies leaves of autograd's graph only. What is computed anew before each forward, such as the weight of
    `torch.nn.utils.weight_norm` or of a pruned layer, is no leaf: the copy gets its values. What cannot be copied the
    copy shares.
    """
    tensors = (value for each in module.modules() for value in _tensors(vars(each)))
    known: dict[int, Any] = {id(value): _copy_of(value) for value in tensors if not _torch_copies(value)}
    try:
        made = copy.deepcopy(module, dict(known))
    except Exception:  # whatever objects of a user's raise
        made = copy.deepcopy(module, {**known, **_not_copied(module, known)})
    for parameter in made.parameters():
        if not is_lazy(parameter) and not parameter.is_leaf:  # of TorchScript, whose copies have a graph
            parameter.detach_().requires_grad_()
    return made


def _torch_copies(value: Tensor) -> bool:
    return value.is_leaf and not isinstance(value, UninitializedBuffer) and value.layout in _COPIED


def _copy_of(value: Tensor) -> Tensor:
    if isinstance(value, UninitializedBuffer):
        made: Tensor = cast(Any, UninitializedBuffer)(False, value.device, value.dtype)
        return made
    return value.detach().clone()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a module's attributes and of the collections among them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple | set | deque):
        for each in value:
            yield from _tensors(each)


def _not_copied(module: nn.Module, known: dict[int, Any]) -> dict[int, Any]:
    """What a user's modules hold that cannot be copied, by its id, as `copy.deepcopy` takes it."""
    torchs = vars(nn.Module())
    held = (value for each in module.modules() for name, value in vars(each).items() if name not in torchs)
    return {id(value): value for value in held if not _can_be_copied(value, known)}


def _can_be_copied(value: Any, known: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(known))
    except Exception:
        return False
    return True
