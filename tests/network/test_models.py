"""Networks: the paper's sizes, shapes, and a user's own modules cut into blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.catalog import VGG_PLANS
from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError
from pipeline.network.blocks import SequentialBlock, canonical
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import build_block, infer_shapes
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


def test_inferred_shapes_are_what_the_blocks_compute() -> None:
    blocks = create_model("vgg8b", input_shape=MNIST, classes=10, width=0.125, hidden_units=16)
    shapes = infer_shapes(given_network(blocks), MNIST)
    x = torch.randn(2, *MNIST)
    for block, shape in zip(blocks, shapes, strict=True):
        assert shape.inputs == tuple(x.shape[1:])
        h = block.features(x)
        x = block.hand_on(h)
        assert shape.features == tuple(h.shape[1:]) and shape.outputs == tuple(x.shape[1:])


def test_large_images_get_a_stem_of_stride_two() -> None:
    network = named_network(ModelConfig(model="vgg8b", width=0.125), (3, 96, 96), 10, "predsim")
    shapes = infer_shapes(network, (3, 96, 96))
    assert shapes[0].features == (16, 48, 48)


def test_images_too_small_for_the_pools_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of 16x16 pixels are too small for vgg16, whose 5 poolings need"):
        create_model("vgg16", input_shape=(3, 16, 16), classes=10)


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


def test_the_output_layer_starts_at_zero_except_under_glob() -> None:
    for loss, zero in (("predsim", True), ("glob", False), ("glob+sim", True)):
        output = create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss=loss)[-1]
        assert bool((output.state_dict()["encoder.weight"] == 0).all()) is zero


def test_a_sequential_is_cut_at_children_with_weights() -> None:
    blocks = blocks_from(
        nn.Sequential(
            nn.Upsample(scale_factor=1),
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 9, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
    )
    assert len(blocks) == 3
    first = blocks[0]
    assert isinstance(first, SequentialBlock)
    assert [type(m).__name__ for m in first.body] == ["Upsample", "Conv2d", "BatchNorm2d", "ReLU"]
    assert [type(m).__name__ for m in first.tail] == ["Dropout2d", "MaxPool2d", "Flatten"]


def test_blocks_from_keeps_the_given_weights_and_the_function() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 1, 4, 4)
    y = x
    for block in blocks_from(network):
        y = block(y)
    assert torch.equal(y, network(x))


def test_a_module_without_weights_may_be_used_twice() -> None:
    relu = nn.ReLU()
    blocks = blocks_from(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2)))
    assert [sum(isinstance(m, nn.ReLU) for m in block.modules()) for block in blocks] == [1, 1, 0]


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="the network of 2 children has no weights"):
        blocks_from(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_shared_parameters_are_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"blocks 0 and 1 share the parameter body\.2\.weight"):
        blocks_from(nn.Sequential(layer, nn.ReLU(), layer))


def test_a_block_that_cannot_learn_is_refused() -> None:
    frozen = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(ConfigError, match="block 1 has no parameter that learns"):
        given_network([nn.Linear(4, 4), frozen, nn.Linear(4, 2)])


def test_a_block_that_does_not_fit_the_one_before_is_named() -> None:
    network = given_network(blocks_from(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(6, 3))))
    with pytest.raises(ConfigError, match=r"block 1 \(linear 1\) does not take input of shape \[5\]"):
        infer_shapes(network, (4,))


def test_canonical_fixes_the_strides_of_size_one_dimensions() -> None:
    for shape in ((3, 4, 1, 1), (1, 1, 5, 5), (2, 3, 4, 5)):
        plain = torch.randn(shape)
        strange = plain.clone().as_strided(shape, plain.stride())
        layouts = [plain, strange, plain.contiguous(memory_format=torch.channels_last)]
        strides = {canonical(x).stride() for x in layouts}
        assert len(strides) == 1
        assert all(torch.equal(canonical(x), plain) for x in layouts)


def test_a_model_for_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--loss is 'hinge'; choose one of glob, pred"):
        create_model("mlp", input_shape=(1, 4, 4), classes=3, loss="hinge")
