"""Batch norms with a momentum and a rate of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.schema import TrainConfig
from pipeline.learning.norms import norm_biases, prepare_norms
from pipeline.learning.optimizer import create_optimizer, set_learning_rate


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False))


def test_without_a_momentum_batch_norms_keep_theirs() -> None:
    model = network()
    prepare_norms(TrainConfig(), model)
    assert [model[1].momentum, model[3].momentum] == [0.1, 0.1]
    prepare_norms(TrainConfig(norm_momentum=0.6), model)
    assert [model[1].momentum, model[3].momentum] == [0.6, 0.6]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_only_the_biases_of_batch_norms_have_the_other_rate(optimizer: str) -> None:
    """A step of each kind against one with the rate that is meant for it."""

    def stepped(lr: float, factor: float) -> nn.Sequential:
        model = network()
        config = TrainConfig(optimizer=optimizer, norm_bias_lr=factor)
        learner = create_optimizer(config, list(model.parameters()), False, norm_biases(model))
        set_learning_rate(lr, learner)
        out = model(torch.randn(8, 3, generator=torch.Generator().manual_seed(2)))
        (out * torch.arange(16).view(8, 2)).sum().backward()
        learner.step()
        return model

    apart, slow, fast = stepped(0.01, 4.0), stepped(0.01, 1.0), stepped(0.04, 1.0)
    biases = [model.get_parameter("1.bias") for model in (apart, slow, fast)]
    assert torch.equal(biases[0], biases[2]) and not torch.equal(biases[0], biases[1])
    for name in ("0.weight", "0.bias", "1.weight", "2.weight", "2.bias"):
        assert torch.equal(apart.get_parameter(name), slow.get_parameter(name))


def test_one_rate_for_all_is_one_group() -> None:
    model = network()
    learner = create_optimizer(TrainConfig(), list(model.parameters()), False, norm_biases(model))
    assert len(learner.param_groups) == 1
