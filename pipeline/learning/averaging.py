"""An exponential average of weights beside those that learn, for evaluation in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average", "follow", "share_of_new"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_Place = tuple[Mapping[str, Tensor | None], str, bool]
"""Where a module keeps a tensor, which may be another one later, and whether it is a buffer."""


def share_of_new(decay: float, step: int) -> float:
    """How far an average goes towards the weights after a step, counted from 0: at first further than 1 - decay."""
    return max(1 - decay, 9 / (10 + step))


class Average:
    """The average of what the state of modules holds in floating point; anything else has none.

    It begins as a copy when training does, since until then weights are still loaded and prepared; before that it is
    the weights.

    Args:
        modules: by what their tensors' names begin with.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._places = {
            prefix + name: place for prefix, module in modules.items() for name, place in _places(module).items()
        }
        self._kept: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Start with the weights as they are, unless it has begun."""
        if not self._kept:
            self.load(self._followed())

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a copy of `state`; the memory layout stays that of the weights."""
        followed = self._followed()
        self._kept = {name: torch.empty_like(x).copy_(state[name]) for name, x in followed.items()}

    def state(self) -> dict[str, Tensor]:
        """The average by name, live."""
        return self._kept or {name: x.detach() for name, x in self._followed().items()}

    def pairs(self) -> list[tuple[Tensor, Tensor, bool]]:
        """What is kept, what it follows, and whether that is a buffer."""
        followed = self._followed()
        return [(x, followed[name], self._places[name][2]) for name, x in self._kept.items()]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange it with the weights for a while, memory and all: what captured graphs read stays where it is."""
        followed = self._followed()
        once = {id(followed[name]): (x, followed[name]) for name, x in self._kept.items()}  # for tied weights, too
        _exchange(once.values())
        try:
            yield
        finally:
            _exchange(once.values())

    def _followed(self) -> dict[str, Tensor]:
        found = {}
        for name, (home, key, _) in self._places.items():
            tensor = home[key]
            assert tensor is not None
            found[name] = tensor
        return found


@torch.no_grad()
def follow(averages: Sequence[Average], share: float) -> None:
    """Let averages go so far towards what they follow, all at once; waits for no device."""
    pairs = [pair for average in averages for pair in average.pairs()]
    if pairs:
        torch._foreach_lerp_([kept for kept, _, _ in pairs], [x for _, x, _ in pairs], share)
    for kept, x, buffer in pairs:
        if buffer:  # of masks: on the way from or to an infinity there is no number
            kept.copy_(torch.where(kept.isfinite(), kept, x))


def _places(module: nn.Module) -> dict[str, _Place]:
    """The floating-point tensors of a module's state, by name."""
    state, found = module.state_dict(), dict[str, _Place]()
    for prefix, part in module.named_modules(remove_duplicate=False):
        homes: list[tuple[Mapping[str, Tensor | None], bool]] = [(part._parameters, False), (part._buffers, True)]
        for home, buffer in homes:
            for key in home.keys():  # noqa: SIM118  TorchScript's tables cannot be iterated over
                name = f"{prefix}.{key}" if prefix else key
                if name in state and state[name].dtype in _DTYPES:
                    found[name] = home, key, buffer
    return found


def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        one.data, other.data = other.data, one.data
