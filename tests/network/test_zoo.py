"""Networks by name: the paper's sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.catalog import VGG_PLANS
from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import create_model, named_network

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
