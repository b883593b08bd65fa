"""Replicas that learn alone and are brought together now and then: local SGD (Stich 2019) and DiLoCo (Douillard et
al. 2023).

Every replica has an optimizer of its own and learns from its part of each batch. After so many steps all go on from
the mean of their weights, or from where an outer optimizer comes to that takes the way of that mean as a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.contenders.backprop import step_on_part
from benchmarks.contenders.common import (
    Mixed,
    Trained,
    error_percent,
    opened,
    timed_epochs,
    told_by_first,
)
from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig

__all__ = ["Outer", "averaged_model", "go_on_from", "train_averaged"]

_OUTER_LR, _OUTER_MOMENTUM = 0.7, 0.9  # DiLoCo, section 3: Nesterov


class Outer:
    """What replicas go on from.

    Args:
        weights: that all of them start from.
        diloco: whether an outer optimizer follows their mean, instead of the mean itself.
    """

    def __init__(self, weights: Sequence[Tensor], *, diloco: bool) -> None:
        self._anchors = [nn.Parameter(weight.detach().clone()) for weight in weights]
        self._optimizer = torch.optim.SGD(self._anchors, _OUTER_LR, _OUTER_MOMENTUM, nesterov=True) if diloco else None

    @torch.no_grad()
    def follow(self, means: Sequence[Tensor]) -> Sequence[Tensor]:
        """The weights that all replicas go on from, by the means of what they have come to."""
        if self._optimizer is None:
            return means
        for anchor, mean in zip(self._anchors, means, strict=True):
            anchor.grad = anchor - mean
        self._optimizer.step()
        return self._anchors


def averaged_model(model: nn.Module, mean: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy with the means of all replicas' weights and statistics; `mean` has the name and what one replica has.

    Of a model that is not compiled: the copy would compute with the weights of the other.
    """
    whole = copy.deepcopy(model)
    state = {name: mean(name, t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    whole.load_state_dict(state)
    return whole


def train_averaged(member: Member, config: RunConfig, every: int, diloco: bool) -> Trained:
    """A replica in every process; `every` so many steps they are brought together."""
    device, batches, blocks = opened(member, config)
    model = Mixed(blocks, config.train, device)
    learn, optimizer = step_on_part(member, config, model, device)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outer, done = Outer(weights, diloco=diloco), 0

    def mean(own: Tensor) -> Tensor:
        total = own.detach().clone()
        if member.size > 1:
            dist.all_reduce(total)
        return total.div_(member.size)

    def step(images: Tensor, labels: Tensor) -> None:
        nonlocal done
        learn(images, labels)
        done += 1
        if done % every == 0:
            go_on_from(weights, outer.follow([mean(weight) for weight in weights]))

    def error() -> float:
        whole = averaged_model(model, lambda name, own: mean(own))
        return told_by_first(member, lambda: error_percent(whole, batches.test(), device))

    return timed_epochs(
        member,
        config,
        batches,
        device,
        step=step,
        optimizers=[optimizer],
        error=error,
    )


@torch.no_grad()
def go_on_from(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set the weights of a replica."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
