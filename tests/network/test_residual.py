"""Residual networks: as large as published, on images of any size, and with the same bits in any placement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision import models

import pipeline
from pipeline.config.schema import ModelConfig
from pipeline.network.zoo import named_network
from tests.support.data import message


def parameters(name: str, shape: tuple[int, ...], classes: int) -> int:
    with torch.device("meta"):
        specs = named_network(ModelConfig(model=name), shape, classes, "glob")
        return sum(weight.numel() for spec in specs for weight in spec.build().parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_networks_are_of_the_size_of_torchvisions(name: str) -> None:
    """Which has no bias in its first convolution."""
    with torch.device("meta"):
        theirs = sum(weight.numel() for weight in getattr(models, name)().parameters())
    assert parameters(name, (3, 224, 224), 1000) == theirs + 64


@pytest.mark.parametrize(("name", "millions"), [("wrn-28-10", 36.5), ("wrn-40-10", 55.8)])
def test_wide_networks_are_of_the_published_size(name: str, millions: float) -> None:
    assert parameters(name, (3, 32, 32), 10) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 10), ("resnet50", 18), ("wrn-28-10", 14), ("wrn-40-10", 20)]
)
def test_a_residual_block_is_one_block(name: str, blocks: int) -> None:
    """Between stem and output."""
    specs = named_network(ModelConfig(model=name), (3, 32, 32), 10, "pred")
    assert len(specs) == ModelConfig(model=name).blocks == blocks
    assert specs[-2].name.endswith(", mean") and specs[-1].name.startswith("output")


def learn(name: str, shape: tuple[int, int, int], **values: Any) -> str:
    """The bits of two steps with a narrow network."""
    images = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(8) % 4)
    width = 1 / 16 if name.startswith("wrn") else 1 / 32
    loss = values.setdefault("loss", "predsim")
    blocks = pipeline.create_model(name, input_shape=shape, classes=4, width=width, loss=loss)
    config = pipeline.TrainConfig(epochs=1, batch_size=4, threads=1, decoder_dim=32, **values)
    return str(pipeline.train(blocks, data, data, config).summary.state_sha256)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 16, 16), (3, 96, 96), (3, 5, 7), (3, 1, 1)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn-28-10"])
def test_images_have_any_size(name: str, shape: tuple[int, int, int]) -> None:
    assert learn(name, shape)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn-28-10"])
@pytest.mark.parametrize("loss", ["pred", "predsim-bio", "glob"])
def test_every_placement_gives_the_same_bits(name: str, loss: str) -> None:
    alone = learn(name, (3, 32, 32), loss=loss)
    assert learn(name, (3, 32, 32), loss=loss, stages=3) == alone
    assert loss == "glob" or learn(name, (3, 32, 32), loss=loss, segments=2) != alone


@pytest.mark.parametrize(("name", "told"), [("resnet18", "1/64"), ("wrn-28-10", "1/16")])
def test_no_channels_at_all_are_told(name: str, told: str) -> None:
    text = message(lambda: ModelConfig(model=name, width=0.01), pipeline.ConfigError)
    assert text == f"--width is 0.01, which leaves {name} without channels; give {told} or more"


def test_the_whole_network_computes_what_its_blocks_do() -> None:
    """A shortcut that changes nothing has no weights, and the end of a wide network is normalised."""
    blocks = pipeline.create_model("wrn-28-10", input_shape=(3, 32, 32), classes=4, width=1 / 16)
    x = torch.randn(2, 3, 32, 32)
    for block in blocks[:-1]:
        x = block(x)
    assert x.shape == (2, 40) and (x.std() > 0).item()
