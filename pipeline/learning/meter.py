"""Sums of losses and errors on the device; nothing waits for it until they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.learning.scores import BlockScore

__all__ = ["Meter", "Scored"]


@dataclass(frozen=True)
class Scored:
    """What a block made of a batch, without gradient: the mean loss, a scalar, and class scores [B, K] or None."""

    loss: Tensor
    scores: Tensor | None


class Meter:
    """Sums over batches for all blocks of a stage that have a loss, in a handful of kernels a batch.

    Args:
        blocks: their indices in the network.
        device: where they are counted.
    """

    def __init__(self, blocks: Sequence[int], device: torch.device) -> None:
        self.blocks = tuple(blocks)
        # of each block: loss times samples, wrong samples, batches before the first loss that was not finite
        self.sums = torch.zeros(len(self.blocks), 3, dtype=torch.float64, device=device)
        self.samples = self.batches = 0
        self._has_errors = [False] * len(self.blocks)
        self._snapshot: tuple[Tensor, int] | None = None

    def add(self, found: Sequence[Scored], labels: Tensor) -> None:
        """Count one batch, in the order of `blocks`; labels are [B]."""
        if not found:
            return
        samples = labels.shape[0]
        self.samples += samples
        self.batches += 1
        self.sums[:, 0].add_(torch.stack([one.loss for one in found]), alpha=samples)
        # A sum that is not finite, which no loss below zero can make, never is again: nobody looks at single losses.
        self.sums[:, 2].add_(self.sums[:, 0] < math.inf)
        self._has_errors = [one.scores is not None for one in found]
        scores = [one.scores for one in found if one.scores is not None]
        if not scores:
            return
        wrong = (_predictions(scores) != labels).sum(1)
        if len(scores) == len(found):
            self.sums[:, 1].add_(wrong)
            return
        for row, count in zip((row for row, has in enumerate(self._has_errors) if has), wrong, strict=True):
            self.sums[row, 1].add_(count)

    def read(self, *, reset: bool) -> dict[int, BlockScore]:
        """Means so far, by block; a block with a loss that was not finite has none.

        With `reset` exact, waiting for the device, and counted anew from now on; else at the last look, without
        waiting: a GPU's sums are copied while it works on.
        """
        if reset:
            scores = self._means(self.sums, self.samples)
            # A fresh tensor, so that a copy under way of the old one stays right.
            self.sums, self.samples, self.batches, self._snapshot = torch.zeros_like(self.sums), 0, 0, None
            return scores
        if self.sums.device.type == "cpu":
            return self._means(self.sums, self.samples)
        previous = self._snapshot
        host = torch.empty(self.sums.shape, dtype=torch.float64, pin_memory=True)
        self._snapshot = (host.copy_(self.sums, non_blocking=True), self.samples)
        return {} if previous is None else self._means(*previous)

    def first_spoilt(self) -> tuple[int, int] | None:
        """Of the first loss that was not finite the batch, counted from 0, and the block; waits for the device."""
        found = zip(self.blocks, self.sums.tolist(), strict=True)
        return min(
            ((int(before), block) for block, (loss, _, before) in found if not math.isfinite(loss)), default=None
        )

    def state(self) -> dict[int, Tensor]:
        """All that is known of each block, float64 [6]."""
        known = [self.sums.new_tensor([self.samples, self.batches, errors]) for errors in self._has_errors]
        return {block: torch.cat(parts) for block, *parts in zip(self.blocks, self.sums, known, strict=True)}

    def load(self, state: Mapping[int, Tensor]) -> None:
        """Go on from a `state`."""
        if not self.blocks:
            return
        mine = torch.stack([state[block] for block in self.blocks])
        self.sums = mine[:, :3].to(self.sums.device, copy=True)
        self.samples, self.batches = mine[0, 3:5].long().tolist()
        self._has_errors, self._snapshot = mine[:, 5].bool().tolist(), None

    def _means(self, sums: Tensor, samples: int) -> dict[int, BlockScore]:
        if samples == 0:
            return {}
        return {
            block: BlockScore(block, loss / samples, 100.0 * wrong / samples if has_errors else None)
            for block, (loss, wrong, _), has_errors in zip(self.blocks, sums.tolist(), self._has_errors, strict=True)
            if math.isfinite(loss)
        }


def _predictions(scores: Sequence[Tensor]) -> Tensor:
    """Best classes [blocks, B]; blocks may have scores of different widths."""
    if len({each.shape for each in scores}) == 1:
        return torch.stack(list(scores)).argmax(2)
    return torch.stack([each.argmax(1) for each in scores])
