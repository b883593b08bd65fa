"""Blocks: what the local loss sees, what is handed on, memory layout, and dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.network.blocks import (
    ConvBlock,
    Dropout,
    LinearBlock,
    MaxPool,
    canonical,
    normalized_convolution,
    window_maxima,
)


def test_dropout_and_pooling_lie_outside_what_the_local_loss_sees() -> None:
    block = ConvBlock(3, 4, nonlinearity="relu", dropout=0.5, pool=True)
    x = torch.randn(2, 3, 8, 8)
    h = block.features(x)
    assert h.shape == (2, 4, 8, 8)
    assert block.hand_on(h).shape == (2, 4, 4, 4)


def special_maps(*shape: int) -> Tensor:
    """Among random values NaN and both infinities, one of them all over a window."""
    x = torch.randn(*shape)
    x[0, 0, 0, 1], x[0, 1, 1, 0], x[0, 2, :2, :2], x[1, 0, 1, 1] = float("nan"), float("inf"), -float("inf"), -1e30
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 5, 2, 6), (2, 3, 2, 2)])
def test_maxima_of_reshaped_axes_are_max_pooling_in_the_layout_of_blocks(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = special_maps(*shape).to(dtype)
    maxima, expected = window_maxima(x), F.max_pool2d(x, 2)
    torch.testing.assert_close(maxima, expected, rtol=0, atol=0, equal_nan=True)
    assert maxima.stride() == canonical(expected).stride()
    assert canonical(maxima).data_ptr() == maxima.data_ptr(), "handed on without a copy"


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [2, 7, 8])
def test_the_pooling_of_blocks_is_max_pooling_with_and_without_a_gradient(
    side: int, channels_last: bool, device: str
) -> None:
    x = special_maps(2, 4, side, side).to(device)
    x = x if channels_last else x.contiguous()
    expected = F.max_pool2d(x, 2)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            pooled = MaxPool()(x)
        torch.testing.assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)
        assert pooled.stride() == expected.stride()


def test_a_linear_block_flattens_in_the_order_of_channels() -> None:
    block = LinearBlock(3 * 4 * 4, 5, nonlinearity="relu", dropout=0.0).eval()
    x = torch.randn(2, 3, 4, 4)
    strided = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(strided), block(x.flatten(1)))


@pytest.mark.parametrize("rate", [0.025, 0.5, 0.9])
def test_dropout_keeps_the_mean_at_its_rate(rate: float) -> None:
    x = torch.ones(400, 1000)
    y = Dropout(rate)(x)
    assert (y == 0).float().mean() == pytest.approx(rate, abs=0.005)
    assert y.mean() == pytest.approx(1.0, abs=0.02)
    assert y.unique().numel() == 2


def test_dropout_of_maps_drops_whole_maps() -> None:
    y = Dropout(0.5, maps=True)(torch.ones(8, 16, 3, 3))
    per_map = y.flatten(2)
    assert torch.equal(per_map, per_map[..., :1].expand_as(per_map))
    assert 0.2 < (y == 0).float().mean() < 0.8


def test_dropout_draws_from_the_default_generator_and_rests_in_evaluation() -> None:
    layer, x = Dropout(0.5), torch.randn(64, 65)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x


def test_neighbouring_values_drop_independently() -> None:
    kept = (Dropout(0.5)(torch.ones(1000, 64)) > 0).float() - 0.5
    correlation = (kept.T @ kept) / (1000 * 0.25)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 0.2


def test_canonical_fixes_the_strides_of_size_one_dimensions() -> None:
    for shape in ((3, 4, 1, 1), (1, 1, 5, 5), (2, 3, 4, 5)):
        plain = torch.randn(shape)
        strange = plain.clone().as_strided(shape, plain.stride())
        layouts = [plain, strange, plain.contiguous(memory_format=torch.channels_last)]
        strides = {canonical(x).stride() for x in layouts}
        assert len(strides) == 1
        assert all(torch.equal(canonical(x), plain) for x in layouts)


@pytest.mark.parametrize("momentum", [0.1, 0.6, 1 - 1e-9, 1.0])
def test_a_bias_before_batch_norm_is_without_effect_but_in_the_running_mean(momentum: float) -> None:
    """A norm that keeps nothing of its running mean keeps nothing that was added to it before, either."""
    torch.manual_seed(0)
    plain = ConvBlock(3, 4, nonlinearity="relu", dropout=0.0, pool=False).double()
    plain.bn.momentum = momentum
    other, x = copy.deepcopy(plain), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    wanted = plain.bn(plain.encoder(x))
    found = normalized_convolution(x, other.encoder, other.bn)
    torch.testing.assert_close(found, wanted)
    for out in (wanted, found):
        (out * torch.arange(6.0).double()).sum().backward()
    for (name, theirs), ours in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert other.encoder.bias is not None and other.encoder.bias.grad is not None
    assert not other.encoder.bias.grad.any()
    for (name, old), new in zip(plain.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(new, old, msg=name)
