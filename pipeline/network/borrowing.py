"""What a run changes of a user's modules beside their weights and statistics, and gives back at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.network.formats import formats_kept

__all__ = ["borrowed"]


@contextmanager
def borrowed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks that are trained inside; afterwards weights have their strides again, and batch norms their momentum.

    Much code flattens weights by a view, which maps laid out channels last have not: torch's LBFGS, say, and
    `parameters_to_vector`.
    """
    norms = [norm for block in blocks for norm in block.modules() if isinstance(norm, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        with formats_kept(blocks):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
