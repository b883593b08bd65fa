"""Sums of losses and errors on the device; nothing waits for it until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.learning.scores import BlockScore

__all__ = ["Meter"]


class Meter:
    """Sums of loss and errors on the device; nothing waits for the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss times samples, wrong samples
        self.samples = 0
        self._has_errors = False
        self._snapshot: tuple[Tensor, int] | None = None

    def add(self, loss: Tensor, scores: Tensor | None, labels: Tensor) -> None:
        """Count one batch: scalar mean loss, class scores [B, K] or None, labels [B]."""
        batch = labels.shape[0]
        self.samples += batch
        self.sums[0].add_(loss.detach(), alpha=batch)
        if scores is not None:
            self._has_errors = True
            self.sums[1].add_((scores.argmax(1) != labels).sum())

    def read(self, block: int, *, reset: bool) -> BlockScore:
        """Means so far. With `reset` exact, waiting for the device, and counted anew from now on; else at the last
        look, without waiting: a GPU's sums are copied while it works on."""
        if reset:
            score = self._mean(block, self.sums, self.samples)
            # A fresh tensor, so that a copy under way of the old one stays right.
            self.sums, self.samples, self._snapshot = torch.zeros_like(self.sums), 0, None
            return score
        if self.sums.device.type == "cpu":
            return self._mean(block, self.sums, self.samples)
        previous = self._snapshot
        host = torch.empty(2, dtype=torch.float64, pin_memory=True)
        self._snapshot = (host.copy_(self.sums, non_blocking=True), self.samples)
        return BlockScore(block, None, None) if previous is None else self._mean(block, *previous)

    def state(self) -> Tensor:
        """All of it, float64 [4]."""
        return torch.cat([self.sums, self.sums.new_tensor([self.samples, self._has_errors])])

    def load(self, state: Tensor) -> None:
        """Go on from a `state`."""
        self.sums = state[:2].to(self.sums.device, copy=True)
        self.samples, self._has_errors, self._snapshot = int(state[2]), bool(state[3]), None

    def _mean(self, block: int, sums: Tensor, samples: int) -> BlockScore:
        if samples == 0:
            return BlockScore(block, None, None)
        loss, wrong = sums.tolist()
        return BlockScore(block, loss / samples, 100.0 * wrong / samples if self._has_errors else None)
