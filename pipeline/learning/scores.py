"""What a meter tells: plain data, so that those who only show it need no torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BlockScore"]


@dataclass(frozen=True)
class BlockScore:
    """Mean local loss and error of one block's own classifier (None where a block has none) over some samples."""

    block: int
    loss: float | None
    error_percent: float | None
