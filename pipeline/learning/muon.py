"""Muon for the matrices of hidden layers and Adam for everything else, as one optimizer.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; steps as long as Adam's after
Liu et al. 2025, "Muon is Scalable for LLM Training".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Muon, Optimizer

__all__ = ["MuonAndAdam", "as_matrix", "learned_by_muon", "score_weights"]

Group = dict[str, Any]
"""Parameters under `params` and their rate under `lr`, as torch's optimizers take them."""

_MOMENTUM = "momentum_buffer"


def score_weights(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the last layer of a network, whose outputs are class scores: the last that was defined."""
    layers = (each for each in module.modules() if any(p.ndim >= 2 for p in each.parameters(recurse=False)))
    last = next(reversed(list(layers)), None)
    return [] if last is None else list(last.parameters(recurse=False))


def as_matrix(x: Tensor, like: Tensor) -> Tensor:
    """Filters [out, in, ...] as [out, everything else], in the order in which `like` lies in memory: then no copy."""
    return x if like.ndim == 2 else _in_order(x, like).flatten(1)


def _in_order(x: Tensor, like: Tensor) -> Tensor:
    return x.permute(0, *sorted(range(1, like.ndim), key=like.stride, reverse=True))


def learned_by_muon(parameters: Sequence[nn.Parameter], scores: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those of `parameters` that are matrices and filters of hidden layers; `scores` give class scores."""
    output = {id(weight) for weight in scores}
    return [each for each in parameters if id(each) not in output and _is_matrix(each)]


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it has rows to make orthogonal; filters with gaps between them in memory cannot be seen as a matrix.

    Numbers to add or to multiply by are spread over several axes at times: [1, C, 1, 1], or [C, 1] in weight norm.
    """
    learns, dims = parameter.requires_grad and parameter.is_floating_point(), parameter.ndim
    if not learns or dims < 2 or parameter.numel() <= max(parameter.shape):
        return False
    return dims == 2 or _in_order(parameter, parameter).is_contiguous()


class MuonAndAdam(Optimizer):
    """torch's Muon and torch's Adam behind the parameters' own groups and state.

    Muon learns filters as matrices on the same memory; its momentum is kept in the shape of the filters.

    Args:
        matrices: groups that Muon learns; their rates are numbers of the host.
        others: groups that Adam learns; without any there is no Adam.
        muon, adam: what these take beside groups.
    """

    recordable = False  # Muon computes with its rate on the host, and a graph would repeat the rate of the day

    def __init__(
        self, matrices: Sequence[Group], others: Sequence[Group], muon: Mapping[str, Any], adam: Mapping[str, Any]
    ) -> None:
        super().__init__([*matrices, *others], {})
        self._matrices = {
            parameter: nn.Parameter(as_matrix(parameter.detach(), parameter))
            for group in matrices
            for parameter in group["params"]
        }
        seen = [{"params": [self._matrices[each] for each in g["params"]], "lr": g["lr"]} for g in matrices]
        self._muon = Muon(seen, adjust_lr_fn="match_rms_adamw", **muon)
        self._adam = Adam([{"params": g["params"], "lr": g["lr"]} for g in others], **adam) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        assert closure is None, "nobody gives one"
        inner = [*self._muon.param_groups, *(self._adam.param_groups if self._adam is not None else ())]
        for group, own in zip(inner, self.param_groups, strict=True):
            group["lr"] = own["lr"]
        if self._adam is not None:
            self._adam.state = self.state
            self._adam.step()
        learning = [each for each in self._matrices.items() if each[0].grad is not None]
        for parameter, matrix in learning:
            self._show(parameter, matrix)
        self._muon.step()
        for _, matrix in learning:
            matrix.grad = None

    def _show(self, parameter: Tensor, matrix: Tensor) -> None:
        """Let Muon see a parameter, its gradient and its momentum where they lie now: a resumed run replaces them."""
        assert parameter.grad is not None
        state = self.state[parameter]
        kept = state.get(_MOMENTUM)
        if kept is None:
            state[_MOMENTUM] = torch.zeros_like(parameter)
        elif kept.stride() != parameter.stride():
            state[_MOMENTUM] = torch.empty_like(parameter).copy_(kept)
        matrix.data = as_matrix(parameter.detach(), parameter)
        matrix.grad = as_matrix(parameter.grad, parameter)
        self._muon.state[matrix] = {_MOMENTUM: as_matrix(state[_MOMENTUM], parameter)}
