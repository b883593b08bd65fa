"""Counts the bytes that autograd keeps for the backward, from its own hooks; weights do not count.

A tensor without data has storages of the same sizes, so that a network of any size is counted in no time and no
memory on the `meta` device:

    saved = SavedTensors([model])
    with saved:
        loss = model(x).sum()      # saved.bytes: kept for the backward
        loss.backward()            # saved.peak: the most kept at any time; saved.bytes is 0 again
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from pipeline.learning.local_block import LocalBlock
from pipeline.learning.numerics import Numerics
from pipeline.network.blocks import canonical

__all__ = ["WITHOUT_DATA", "Kept", "SavedTensors", "checkpointed_peak", "keep_layout", "modules_of", "peaks"]


WITHOUT_DATA = Numerics(torch.device("meta"), fused=False)
"""For shapes alone."""


class Kept:
    """A tensor that counts for as long as this object lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedTensors(saved_tensors_hooks):
    """While it is entered, the bytes of all distinct storages that autograd saves, and of those held by hand.

    Args:
        modules: whose parameters and buffers do not count, saved or not.

    Attributes:
        bytes: kept now.
        peak: the most since the start or the last `reset`.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__(self._pack, _unpack)
        self.bytes = self.peak = 0
        self._weights = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self._excluded = {_identity(tensor) for tensor in self._weights}
        self._users: Counter[int] = Counter()  # of each storage

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak = self.bytes

    def hold(self, tensor: Tensor) -> Kept:
        """Count a tensor that something other than autograd keeps, until the result is dropped."""
        kept = Kept(tensor.detach())  # not the tensor itself: a graph that holds its own output is never freed
        storage, size = _identity(tensor), tensor.untyped_storage().nbytes()
        self._users[storage] += 1
        if self._users[storage] == 1:
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        weakref.finalize(kept, self._drop, storage, size).atexit = False
        return kept

    def _pack(self, tensor: Tensor) -> Tensor | Kept:
        return tensor.detach() if _identity(tensor) in self._excluded else self.hold(tensor)

    def _drop(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if self._users[storage] == 0:
            del self._users[storage]
            self.bytes -= size


def _unpack(saved: Tensor | Kept) -> Tensor:
    return saved.tensor if isinstance(saved, Kept) else saved


def _identity(tensor: Tensor) -> int:
    """Of the tensor's storage; data pointers would not do, they are all zero on the meta device."""
    return int(tensor.untyped_storage()._cdata)


def modules_of(blocks: Iterable[LocalBlock]) -> list[nn.Module]:
    """Blocks and local heads, whose weights do not count."""
    return [module for block in blocks for module in (block.block, block.loss) if module is not None]


def keep_layout(modules: Iterable[nn.Module]) -> None:
    """Make convolutions without data give channels_last maps, as on a CPU or GPU: others are copied between blocks."""
    for convolution in (part for module in modules for part in module.modules() if isinstance(part, nn.Conv2d)):
        if convolution.weight.is_meta:
            convolution.register_forward_hook(_in_canonical_layout)


def _in_canonical_layout(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return canonical(output)


def peaks(step: Callable[[], object], modules: Iterable[nn.Module], repetitions: int) -> list[int]:
    """The most bytes that autograd keeps in each of several training steps."""
    found, saved = [], SavedTensors(modules)
    with saved:
        for _ in range(repetitions):
            saved.reset()
            step()
            found.append(saved.peak)
    return found


def checkpointed_peak(blocks: Sequence[nn.Module], x: Tensor, labels: Tensor) -> int:
    """The most bytes kept by global backprop with a checkpoint at every block: inputs, and one block's own.

    The blocks run one by one, because while torch computes a block again other hooks are not asked. Its backward meets
    the same sets of tensors in the opposite order.
    """
    inputs, saved = [], SavedTensors(blocks)
    with saved:
        for position, block in enumerate(blocks):
            inputs.append(saved.hold(x))
            out = block(x if position == 0 else x.requires_grad_())
            if position == len(blocks) - 1:
                out = F.cross_entropy(out, labels)
            x = out.detach()
            del out
    return saved.peak
