"""What a first block takes from the data before any training."""

from __future__ import annotations

from pipeline.data.batches import Batches
from pipeline.network.blocks import Block
from pipeline.network.fastnet import WHITENING_IMAGES, WhiteningBlock

__all__ = ["prepare"]


def prepare(first: Block, batches: Batches) -> None:
    """Let a network's first block look at the data, if it wants to and has not: no saved weights have come for it."""
    if isinstance(first, WhiteningBlock) and not first.prepared:
        first.prepare(batches.plain(WHITENING_IMAGES))
