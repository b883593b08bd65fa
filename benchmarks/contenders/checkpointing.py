"""Global backprop that keeps the inputs of blocks only, and computes the rest again (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pipeline.network.blocks import Dropout

__all__ = ["Checkpointed"]


class Checkpointed(nn.Module):
    """A block whose activations are computed again in the backward; same results, running statistics too."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        # A CUDA graph cannot keep the state of a generator.
        random = any(isinstance(module, Dropout) and module.rate > 0 for module in self.block.modules())
        return cast(
            Tensor,
            checkpoint(self.block, x, use_reentrant=False, preserve_rng_state=random, context_fn=self._contexts),
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(self.block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """A batch that is seen for the second time leaves no trace."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
