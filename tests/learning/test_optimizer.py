"""Local heads with a rate of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.method import Method
from pipeline.learning.optimizer import create_optimizer, set_learning_rate


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))


def rates(config: Method, heads: bool = True) -> list[float]:
    """Of weight and bias of each layer; the second half is the head."""
    model = network()
    biases = [model.get_parameter(name) for name in ("1.bias", "3.bias")]
    given = list(model[2:].parameters()) if heads else []
    optimizer = create_optimizer(config, list(model.parameters()), True, biases, heads=given)
    set_learning_rate(0.1, optimizer)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return [found[id(each)] for each in model.parameters()]


def test_a_bias_of_a_norm_in_a_head_has_both_factors() -> None:
    found = rates(Method(head_lr=0.5, norm_bias_lr=8.0))
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.8, 0.05, 0.05, 0.05, 0.4])


def test_without_local_heads_it_changes_nothing() -> None:
    assert rates(Method(head_lr=0.5), heads=False) == [0.1] * 8


def test_what_has_the_same_rate_is_one_group() -> None:
    model = network()
    alike = create_optimizer(Method(), list(model.parameters()), True, heads=list(model[2:].parameters()))
    assert len(alike.param_groups) == 1
    both = Method(head_lr=2.0, norm_bias_lr=2.0)
    biases = [model.get_parameter("1.bias")]
    apart = create_optimizer(both, list(model.parameters()), True, biases, heads=list(model[2:].parameters()))
    assert [len(group["params"]) for group in apart.param_groups] == [3, 5]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_head_learns_at_its_rate(optimizer: str) -> None:
    """A step against one with the rate that is meant for it."""

    def stepped(lr: float, factor: float) -> list[torch.Tensor]:
        model = network()
        config = Method(optimizer=optimizer, head_lr=factor)
        learner = create_optimizer(config, list(model.parameters()), False, heads=list(model[2:].parameters()))
        set_learning_rate(lr, learner)
        out = model(torch.randn(8, 3, generator=torch.Generator().manual_seed(2)))
        (out * torch.arange(16).view(8, 2)).sum().backward()
        learner.step()
        return list(model.parameters())

    apart, slow, fast = stepped(0.01, 4.0), stepped(0.01, 1.0), stepped(0.04, 1.0)
    assert all(torch.equal(one, other) for one, other in zip(apart, [*slow[:4], *fast[4:]], strict=True))
    assert not torch.equal(slow[4], fast[4])


def test_a_bias_that_two_norms_share_has_its_factor_once() -> None:
    model = network()
    bias = model.get_parameter("1.bias")
    optimizer = create_optimizer(Method(norm_bias_lr=8.0), list(model.parameters()), True, [bias, bias])
    set_learning_rate(0.1, optimizer)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found[id(bias)] == pytest.approx(0.8)
