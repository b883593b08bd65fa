"""What a run changes of a user's modules beside their weights and statistics, and gives back at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

__all__ = ["borrowed"]


@contextmanager
def borrowed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks that are trained inside; afterwards row-major weights are so again, and batch norms have their momentum.

    Much code flattens weights by a view, which maps laid out channels last have not: torch's LBFGS, say, and
    `parameters_to_vector`.
    """
    row_major = [
        {name for name, tensor in _tensors(block) if is_lazy(tensor) or tensor.is_contiguous()} for block in blocks
    ]
    norms = [norm for block in blocks for norm in block.modules() if isinstance(norm, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for block, names in zip(blocks, row_major, strict=True):
            for name, tensor in _tensors(block):
                if name in names and tensor.ndim == 4:
                    tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _tensors(block: nn.Module) -> list[tuple[str, Tensor]]:
    return [*block.named_parameters(), *block.named_buffers()]
