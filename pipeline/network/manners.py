"""How a block treats what it is given, so that others can give it what it wants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.network.blocks import canonical

__all__ = ["Manners"]


@dataclass(frozen=True)
class Manners:
    """How a block treats what it is given."""

    channels_last: bool = True  # takes maps in this memory format; else they are row-major
    writes_input: bool = False
    writes_features: bool = False  # when it hands them on
    unit: bool = False  # refuses numbers that are not from 0 to 1
    wants_gradient: bool = False  # of its input: without, its weights get none either
    draws_on_host: bool = False  # from generators of the host that are not the device's
    draws_in_evaluation: bool = False
    draws_in_backward: bool = False  # or may, by the hooks of its weights
    writes_in_evaluation: bool = False  # to its buffers
    learns_in_hand_on: bool = False  # by weights that its features do not depend on

    def made_up(self, *sizes: int, generator: torch.Generator) -> Tensor:
        """Numbers that it takes."""
        return (torch.rand if self.unit else torch.randn)(*sizes, generator=generator)

    def given(self, x: Tensor) -> Tensor:
        """The input as the block wants it, its own to write to if it does."""
        x = x if self.channels_last else canonical(x, channels_last=False)
        return x.clone() if self.writes_input else x

    def handed(self, h: Tensor) -> Tensor:
        """The features for `hand_on`, likewise."""
        return h.clone() if self.writes_features else h
