"""Functions with a gradient written out, against torch and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.learning.ops import SpatialStd, SpatialStdInTwoPasses, spatial_std

STDS = [SpatialStd, SpatialStdInTwoPasses]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def maps(*shape: int, dtype: torch.dtype = torch.float64, channels_last: bool = True) -> Tensor:
    x = torch.randn(*shape, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def with_gradient(function: type[torch.autograd.Function], x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    std = function.apply(x)
    (gradient,) = torch.autograd.grad((std * weights).sum(), x)
    return std, gradient


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("function", STDS)
def test_spatial_std_equals_torch_with_its_gradient(
    function: type[torch.autograd.Function], channels_last: bool
) -> None:
    x = maps(4, 5, 3, 7, channels_last=channels_last)
    weights = torch.randn(4, 5, dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    (theirs.std(dim=(2, 3)) * weights).sum().backward()
    std, gradient = with_gradient(function, x, weights)
    torch.testing.assert_close(std, x.std(dim=(2, 3)))
    torch.testing.assert_close(gradient, theirs.grad)
    assert gradient.stride() == x.stride()


@pytest.mark.parametrize("function", STDS)
def test_spatial_std_has_the_gradient_of_finite_differences(function: type[torch.autograd.Function]) -> None:
    assert torch.autograd.gradcheck(function.apply, maps(2, 3, 2, 3).requires_grad_())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_both_ways_to_a_spatial_std_agree_away_from_mean_zero(dtype: torch.dtype, tolerance: float) -> None:
    x, weights = maps(3, 4, 8, 8, dtype=dtype) + 1, torch.randn(3, 4, dtype=dtype)
    results = [with_gradient(function, x, weights) for function in STDS]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", STDS)
def test_a_constant_map_has_neither_deviation_nor_gradient(
    function: type[torch.autograd.Function], dtype: torch.dtype
) -> None:
    x = maps(2, 3, 4, 4, dtype=dtype)
    x[0, 1], x[1] = 1.5, 0
    std, gradient = with_gradient(function, x, torch.randn(2, 3, dtype=dtype))
    assert torch.equal(std == 0, torch.tensor([[False, True, False], [True, True, True]]))
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient.abs().sum(dim=(2, 3)) == 0, std == 0)


@on_a_gpu
def test_a_gpu_has_the_spatial_std_of_a_cpu() -> None:
    x, weights = maps(4, 8, 8, 8, dtype=torch.float32), torch.randn(4, 8)
    x[0, 0] = 1.5
    on_gpu = x.cuda().requires_grad_()
    std = spatial_std(on_gpu)
    (std * weights.cuda()).sum().backward()
    expected, gradient = with_gradient(SpatialStd, x, weights)
    assert on_gpu.grad is not None and on_gpu.grad.stride() == gradient.stride()
    torch.testing.assert_close(std.cpu(), expected)
    torch.testing.assert_close(on_gpu.grad.cpu(), gradient)
