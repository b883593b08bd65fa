"""What travels from stage to stage."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from torch import Tensor

__all__ = ["Kind", "Packet"]


class Kind(enum.IntEnum):
    """What a packet asks of a stage."""

    TRAIN = 0
    EVALUATE = 1
    END_OF_EPOCH = 2
    STOP = 3


@dataclass(frozen=True)
class Packet:
    """A batch on its way through the stages. Step and epoch travel along: the learning rate is a function of them.

    `activation` and `labels` are None in packets that only carry a message (end of epoch, stop).
    """

    kind: Kind
    epoch: int  # from 1
    step: int  # over the whole run, from 0
    activation: Tensor | None = None  # [B, ...]
    labels: Tensor | None = None  # int64 [B]

    @property
    def batch(self) -> int:
        """Samples in the packet."""
        return 0 if self.labels is None else self.labels.shape[0]

    def with_activation(self, activation: Tensor) -> Packet:
        """The same packet one stage further."""
        return replace(self, activation=activation)
