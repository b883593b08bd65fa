"""Networks by name: the paper's sizes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.catalog import VGG_PLANS
from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import create_model, named_network
from tests.support.data import message

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


def parameters(config: ModelConfig, shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        blocks = [spec.build() for spec in named_network(config, shape, 10, "predsim")]
    return sum(p.numel() for block in blocks for p in block.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "millions"),
    [
        (ModelConfig(model="vgg8b"), CIFAR, 8.90),
        (ModelConfig(model="vgg8b"), MNIST, 7.33),
        (ModelConfig(model="vgg11b"), CIFAR, 11.56),
        (ModelConfig(model="vgg11b", width=2), CIFAR, 41.98),
        (ModelConfig(model="vgg11b", width=3), CIFAR, 91.28),
        (ModelConfig(model="mlp", hidden_units=3000), CIFAR, 27.27),
    ],
)
def test_parameter_counts_are_the_papers(config: ModelConfig, shape: tuple[int, ...], millions: float) -> None:
    assert round(parameters(config, shape) / 1e6, 2) == millions


@pytest.mark.parametrize("name", VGG_PLANS)
def test_every_vgg_maps_images_to_scores(name: str) -> None:
    blocks = create_model(name, input_shape=CIFAR, classes=7, width=0.0625, hidden_units=16)
    assert len(blocks) == ModelConfig(model=name).blocks
    x = torch.randn(2, *CIFAR)
    for block in blocks:
        x = block(x)
    assert x.shape == (2, 7)


def test_large_images_get_a_stem_of_stride_two() -> None:
    network = named_network(ModelConfig(model="vgg8b", width=0.125), (3, 96, 96), 10, "predsim")
    shapes = infer_shapes(network, (3, 96, 96))
    assert shapes[0].features == (16, 48, 48)


def test_images_too_small_for_the_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of 16x16 pixels are too small for vgg16, whose 5 poolings need"):
        create_model("vgg16", input_shape=(3, 16, 16), classes=10)


def test_the_output_layer_starts_at_zero_except_under_glob() -> None:
    for loss, zero in (("predsim", True), ("glob", False), ("glob+sim", True)):
        output = create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss=loss)[-1]
        assert bool((output.state_dict()["encoder.weight"] == 0).all()) is zero


def test_a_model_for_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--loss is 'hinge'; choose one of glob, pred"):
        create_model("mlp", input_shape=(1, 4, 4), classes=3, loss="hinge")


def weights(**given: Any) -> torch.Tensor:
    blocks = create_model(
        "mlp", **{"input_shape": (1, 4, 4), "classes": 3, "hidden_units": 8, "loss": "glob", **given}
    )
    return torch.cat([p.detach().flatten() for block in blocks for p in block.parameters()])


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3)])
def test_a_seed_of_any_kind_of_whole_number_draws_the_same_weights(seed: Any) -> None:
    assert torch.equal(weights(seed=seed), weights(seed=3)) and not torch.equal(weights(seed=3), weights())


@pytest.mark.parametrize(
    "shape", [[1, 4, 4], torch.Size([1, 4, 4]), np.array([1, 4, 4]), (np.int64(1), 4, 4), (16,), 16]
)
def test_a_shape_in_anything_that_has_an_order_makes_the_same_network(shape: Any) -> None:
    assert torch.equal(weights(input_shape=shape, classes=np.int64(3)), weights())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": True}, "--seed is True; give a whole number"),
        ({"seed": 1.0}, "--seed is 1.0; give a whole number"),
        ({"seed": "1"}, "--seed is '1'; give a whole number"),
        ({"classes": 0}, "classes is 0; give a whole number at least 1 and at most 1000000"),
        ({"classes": 3.0}, "classes is 3.0; give a whole number"),
        ({"classes": True}, "classes is True; give a whole number"),
        ({"classes": 10**12}, "classes is 1000000000000; give a whole number"),
        ({"classes": ["cat", "dog"]}, "classes is ['cat', 'dog']; give a whole number"),
        ({"input_shape": None}, "input_shape is None; give (channels, height, width) of an image"),
        ({"input_shape": "144"}, "input_shape is '144'; give (channels"),
        ({"input_shape": {1, 4}}, "input_shape is {1, 4}; give (channels"),
        ({"input_shape": (1, 4, -4)}, "input_shape is (1, 4, -4); give (channels"),
        ({"input_shape": (1, 4.0, 4)}, "input_shape is (1, 4.0, 4); give (channels"),
        ({"input_shape": torch.zeros(2, 1, 4, 4)}, "input_shape is tensor([[[[0., 0., 0., 0.],"),
    ],
)
def test_what_makes_no_network_is_named(values: dict[str, Any], told: str) -> None:
    assert message(lambda: weights(**values), ConfigError).startswith(told)


@pytest.mark.parametrize("name", ["vgg8b", "resnet18", "fastnet"])
@pytest.mark.parametrize("shape", [32, (32, 32), (2, 3, 32, 32)])
def test_a_shape_without_channels_or_with_a_batch_is_told(name: str, shape: Any) -> None:
    told = f"input_shape is {shape}; give (channels, height, width) of an image, whole numbers of at least 1, such as"
    assert message(lambda: create_model(name, input_shape=shape, classes=3), ConfigError).startswith(told)
