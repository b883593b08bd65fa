"""What travels from stage to stage."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Kind", "Packet", "Position", "Signature", "TensorSpec", "labelled"]


@dataclass(frozen=True, order=True)
class Position:
    """A point of a run: it addresses a packet, names a checkpoint, keys random numbers."""

    epoch: int = 1  # from 1
    step: int = 0  # training steps done before it, over the whole run


class Kind(enum.IntEnum):
    """What a packet asks of a stage."""

    TRAIN = 0
    EVALUATE = 1
    SNAPSHOT = 2
    END_OF_EPOCH = 3
    STOP = 4


@dataclass(frozen=True)
class TensorSpec:
    """One sample of a tensor: its shape and number format."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"

    def empty(self, batch: int, device: torch.device) -> Tensor:
        """Memory for a batch, in canonical layout."""
        if len(self.shape) != 3:
            return torch.empty((batch, *self.shape), dtype=self.dtype, device=device)
        channels, height, width = self.shape
        return torch.empty((batch, height, width, channels), dtype=self.dtype, device=device).permute(0, 3, 1, 2)


Signature = Mapping[str, TensorSpec]
"""The named tensors of a packet that carries a batch."""


def labelled(x: TensorSpec) -> Signature:
    """An activation and the labels, which ride along to every stage."""
    return {"x": x, "labels": TensorSpec((), torch.int64)}


@dataclass(frozen=True)
class Packet:
    """A batch on its way through the stages, or a message without tensors: snapshot, end of epoch, stop."""

    kind: Kind
    at: Position
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # each [B, ...]: "x", "labels"

    @classmethod
    def of(cls, kind: Kind, at: Position, x: Tensor, labels: Tensor) -> Packet:
        """A batch: activation [B, ...] and labels, int64 [B]."""
        return cls(kind, at, {"x": x, "labels": labels})

    @property
    def x(self) -> Tensor:
        """The activation, or the gradient where that is what travels: [B, ...]."""
        return self.tensors["x"]

    @property
    def labels(self) -> Tensor:
        """int64 [B]."""
        return self.tensors["labels"]

    @property
    def batch(self) -> int:
        """Samples in the packet."""
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    def with_x(self, x: Tensor) -> Packet:
        """The same packet one stage further."""
        return replace(self, tensors={**self.tensors, "x": x})
