"""Blocks before they are built: inferred shapes, keyed weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import build_block, infer_shapes
from pipeline.network.zoo import create_model, named_network

MNIST = (1, 28, 28)


def test_inferred_shapes_are_what_the_blocks_compute() -> None:
    blocks = create_model("vgg8b", input_shape=MNIST, classes=10, width=0.125, hidden_units=16)
    shapes = infer_shapes(given_network(blocks), MNIST)
    x = torch.randn(2, *MNIST)
    for block, shape in zip(blocks, shapes, strict=True):
        assert shape.inputs == tuple(x.shape[1:])
        h = block.features(x)
        x = block.hand_on(h)
        assert shape.features == tuple(h.shape[1:]) and shape.outputs == tuple(x.shape[1:])


def test_initial_weights_are_keyed_by_seed_and_block() -> None:
    network = named_network(ModelConfig(model="mlp", hidden_units=8), (1, 4, 4), 3, "pred")
    torch.manual_seed(123)
    first = build_block(network[1], 1, 1).state_dict()["encoder.weight"]
    torch.rand(5)
    again = build_block(network[1], 1, 1).state_dict()["encoder.weight"]
    other_seed = build_block(network[1], 2, 1).state_dict()["encoder.weight"]
    other_block = build_block(network[2], 1, 2).state_dict()["encoder.weight"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, other_block)


def test_building_blocks_leaves_the_callers_random_numbers_alone() -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8)
    infer_shapes(given_network([own]), (1, 2, 2))
    assert torch.equal(torch.rand(3), expected)


def test_a_block_that_does_not_fit_the_one_before_is_named() -> None:
    network = given_network(blocks_from(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(6, 3))))
    with pytest.raises(ConfigError, match=r"block 1 \(linear 1\) does not take input of shape \[5\]"):
        infer_shapes(network, (4,))
