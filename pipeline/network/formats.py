"""Memory formats of the weights of a user's blocks: what training gives them, and their own again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["formats_kept", "lay_out"]


def lay_out(module: nn.Module, channels_last: bool) -> None:
    """Give the weights of convolutions of maps, and buffers like them, a memory format.

    What shares its memory with another tensor of the module keeps it, as it is.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    tensors = [*module.parameters(), *module.buffers()]
    users = Counter(_memory(tensor) for tensor in tensors)
    for tensor in tensors:
        if _is_map(tensor) and (not _memory(tensor) or users[_memory(tensor)] == 1):
            tensor.data = tensor.data.to(memory_format=layout)


def _is_map(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.layout == torch.strided


def _memory(tensor: Tensor) -> int:
    """Where it is; 0 where it has none."""
    return 0 if tensor.is_meta or tensor.layout != torch.strided else tensor.untyped_storage().data_ptr()


@contextmanager
def formats_kept(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Give the tensors of blocks the strides that they came with back, however it ends; new ones are row-major."""
    before = {name: tensor.stride() for name, tensor in _maps(blocks)}
    try:
        yield
    finally:
        for name, tensor in _maps(blocks):
            stride = before.get(name) or torch.empty(tensor.shape, device="meta").stride()
            if tensor.stride() != stride:
                own = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
                tensor.data = own.copy_(tensor.detach())


def _maps(blocks: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """What `lay_out` lays out, by block and name."""
    for index, block in enumerate(blocks):
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            if not is_lazy(tensor) and _is_map(tensor):
                yield (index, name), tensor
