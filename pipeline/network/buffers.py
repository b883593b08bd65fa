"""Buffers of a block as they are at one time: whether they have been written to since, and putting them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Buffers"]


@dataclass(frozen=True)
class _Written:
    """A tensor, its memory, how often it had been written to, and its numbers; those of a sparse one are not kept."""

    tensor: Tensor
    memory: Tensor
    version: int
    numbers: Tensor | None

    @classmethod
    def now(cls, tensor: Tensor) -> _Written:
        numbers = tensor.detach().clone() if tensor.layout == torch.strided else None
        return cls(tensor, tensor.data, tensor._version, numbers)

    def changed(self) -> bool:
        """Also by the same numbers, which others will not be; by way of `.data` no version tells."""
        if self.tensor._version != self.version:
            return True
        return self.numbers is not None and not self.tensor.equal(self.numbers)

    def put_back(self) -> None:
        if self.numbers is not None:
            self.tensor.data = self.memory
            self.tensor.data.copy_(self.numbers)


class Buffers:
    """Those of a block and of all below it as they are now."""

    def __init__(self, block: nn.Module) -> None:
        # TorchScript's tables know neither `clear` nor iteration.
        self._tables = [(module._buffers, dict(module._buffers.items())) for module in block.modules()]
        buffers = {id(each): each for _, table in self._tables for each in table.values() if each is not None}
        self._written = [_Written.now(each) for each in buffers.values()]

    def changed(self) -> bool:
        """Whether one has been written to, or another tensor, or none, is in its place."""
        return any(_replaced(*tables) for tables in self._tables) or any(each.changed() for each in self._written)

    def put_back(self) -> None:
        """The tensors that there were, in the memory that they had, with their numbers: what has been put in their
        place may be as large as a batch, or be a part of what the block has computed."""
        for now, before in self._tables:
            for name in set(now.keys()) - before.keys():
                del now[name]
            for name, tensor in before.items():
                now[name] = tensor
        for each in self._written:
            each.put_back()


def _replaced(now: dict[str, Tensor | None], before: dict[str, Tensor | None]) -> bool:
    return set(now.keys()) != before.keys() or any(now[name] is not tensor for name, tensor in before.items())
