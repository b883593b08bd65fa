"""The fast small network: its whitening, its start, what of it is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.model import ModelConfig
from pipeline.errors import ConfigError
from pipeline.network.fastnet import FastBlock, FastOutput, WhiteningBlock, patch_whitening
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network


def correlated(samples: int = 700, channels: int = 3, side: int = 10) -> Tensor:
    """Images whose neighbours are alike, and whose channels are."""
    noise = torch.randn(samples, channels, side, side, generator=torch.Generator().manual_seed(3))
    smooth = F.avg_pool2d(noise, 3, stride=1, padding=1)
    return smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.1 * noise


def network(channels: int = 3, side: int = 16, width: float = 0.125, loss: str = "pred") -> list[nn.Module]:
    return list(
        pipeline.create_model("fastnet", input_shape=(channels, side, side), classes=5, width=width, loss=loss)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_no_correlation(channels: int) -> None:
    images = correlated(channels=channels)
    filters = patch_whitening(images)
    size = 4 * channels
    assert filters.shape == (2 * size, channels, 2, 2) and torch.equal(filters[size:], -filters[:size])
    out = F.conv2d(images, filters[:size]).transpose(0, 1).flatten(1).double()
    moments = out @ out.T / out.shape[1]
    assert (moments - torch.diag(moments.diag())).abs().max() < 1e-3
    assert moments.diag().min() > 0.5 and moments.diag().max() < 1 + 1e-4, "1 but for what is added to the variances"


def test_the_whitening_draws_no_random_number_and_does_not_depend_on_signs() -> None:
    images, before = correlated(), torch.get_rng_state()
    assert torch.equal(patch_whitening(images), patch_whitening(-images))
    assert torch.equal(torch.get_rng_state(), before)


def test_convolutions_begin_as_the_identity() -> None:
    block = FastBlock(3, 8, nonlinearity="gelu", dropout=0.0, pool=False)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block.encoder(x)[:, :3], x)
    few = FastBlock(24, 8, nonlinearity="gelu", dropout=0.0, pool=False)
    y = torch.randn(2, 24, 5, 5)
    assert torch.equal(few.encoder(y), y[:, :8]), "as many as there are filters"


def test_scores_begin_as_a_ninth_of_weights_with_deviation_1() -> None:
    output = FastOutput(64, 10)
    assert output.encoder.weight.std().item() == pytest.approx(1)
    x = torch.randn(4, 64)
    torch.testing.assert_close(output(x), x @ output.encoder.weight.T / 9)


def test_shapes_and_parameters() -> None:
    shapes = infer_shapes(named_network(ModelConfig(model="fastnet"), (3, 32, 32), 10, "glob"), (3, 32, 32))
    sides = [(64, 15), (64, 15), (256, 7), (256, 7), (256, 3)]
    assert [shape.outputs for shape in shapes] == [*((c, s, s) for c, s in sides), (256,), (10,)]
    weights = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2 * (2 * 64 + 4 * 256) + 256 * 10
    blocks = pipeline.create_model("fastnet", input_shape=(3, 32, 32), classes=10)
    assert sum(weight.numel() for block in blocks for weight in block.parameters()) == weights
    assert len(blocks) == ModelConfig(model="fastnet").blocks == 7


@pytest.mark.parametrize("side", [9, 28, 32, 96])
def test_images_may_have_any_size_from_9_on(side: int) -> None:
    model = nn.Sequential(*network(side=side)).eval()
    assert model(torch.randn(2, 3, side, side)).shape == (2, 5)


def test_smaller_images_are_told() -> None:
    with pytest.raises(ConfigError, match="images of 8x8 pixels are too small for fastnet, which needs at least 9x9"):
        network(side=8)


@pytest.mark.parametrize("loss", ["glob", "pred", "predsim"])
def test_training_learns_the_convolutions_and_leaves_the_frozen_parts(loss: str, tmp_path: Path) -> None:
    images, labels = correlated(64, side=12), torch.arange(64) % 5
    blocks = network(side=12, loss=loss)
    before = {name: tensor.clone() for name, tensor in nn.Sequential(*blocks).state_dict().items()}
    data = TensorDataset(images, labels)
    config = pipeline.TrainConfig(loss=loss, epochs=2, batch_size=16, threads=1, decoder_dim=64)
    result = pipeline.train(blocks, data, data, config, output=tmp_path / "run")
    after = result.model.state_dict()
    first = cast(WhiteningBlock, blocks[0])
    assert torch.equal(first.whitening, patch_whitening(images)) and first.prepared
    for name, tensor in before.items():
        if name.endswith("encoder.weight"):
            assert not torch.equal(tensor, after[name]), name
        if name.endswith("bn.weight"):
            assert torch.equal(after[name], torch.ones_like(tensor)), name
    loaded = pipeline.load_model(tmp_path / "run", network(side=12, loss=loss))
    assert all(torch.equal(tensor, after[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(images), result.model(images))


def test_a_run_that_goes_on_keeps_its_whitening(tmp_path: Path) -> None:
    images, labels = correlated(64, side=12), torch.arange(64) % 5
    config = pipeline.TrainConfig(loss="pred", epochs=1, batch_size=16, threads=1)
    data = TensorDataset(images, labels)
    pipeline.train(network(side=12), data, data, config, output=tmp_path / "run")
    others = TensorDataset(correlated(64, side=12) * 3, labels)
    blocks = network(side=12)
    longer = pipeline.TrainConfig(loss="pred", epochs=2, batch_size=16, threads=1)
    pipeline.train(blocks, others, others, longer, resume=tmp_path / "run")
    assert torch.equal(cast(WhiteningBlock, blocks[0]).whitening, patch_whitening(images))
