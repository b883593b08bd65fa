"""Functions with a gradient written out, against torch and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.heads import AveragePool
from pipeline.learning.ops import (
    SimilarityMatching,
    SpatialStd,
    SpatialStdInTwoPasses,
    centred_cosines,
    spatial_std,
    spread_by_copy,
    spread_by_rows,
    window_means,
)
from tests.support.operations import Operations

STDS = [SpatialStd, SpatialStdInTwoPasses]
TILED = [((8, 8), (4, 2)), ((8, 12), (4, 4)), ((6, 6), (2, 1)), ((4, 4), (4, 4)), ((1, 6), (1, 3)), ((5, 5), (1, 5))]
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "kernel"), TILED)
def test_means_of_reshaped_axes_are_average_pooling(
    size: tuple[int, int], kernel: tuple[int, int], dtype: torch.dtype
) -> None:
    x = maps(3, 5, *size, dtype=dtype)
    expected = F.avg_pool2d(x, kernel)
    means = window_means(x, kernel)
    torch.testing.assert_close(means, expected)
    assert means.stride() == expected.stride() and means.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        *((size, kernel, (0, 0)) for size, kernel in TILED),
        ((28, 28), (16, 8), (8, 4)),
        ((3, 3), (4, 2), (2, 1)),
        ((7, 7), (4, 4), (2, 2)),
        ((9, 9), (4, 4), (0, 0)),
        ((3, 3), (2, 1), (0, 0)),
        ((11, 10), (4, 3), (1, 1)),
        ((5, 9), (4, 2), (2, 0)),
    ],
)
def test_rows_spread_means_out_to_the_bits_of_a_copy(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], dtype: torch.dtype
) -> None:
    means = F.avg_pool2d(maps(3, 5, *size, dtype=dtype), kernel, kernel, padding).permute(0, 2, 3, 1)
    copied, gathered = (spread(means, kernel, padding, *size) for spread in (spread_by_copy, spread_by_rows))
    assert gathered.shape == (3, *size, 5)
    assert torch.equal(gathered, copied) and gathered.is_contiguous()


@on_a_gpu
@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [((8, 8), (4, 2), (0, 0)), ((28, 28), (16, 8), (8, 4)), ((9, 9), (4, 4), (0, 0)), ((7, 7), (4, 4), (2, 2))],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_pools_as_a_cpu_does(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], channels_last: bool
) -> None:
    x = maps(3, 8, *size, dtype=torch.float32, channels_last=channels_last)
    pool = AveragePool(kernel, padding)
    on_cpu, on_gpu = x.requires_grad_(), x.detach().cuda().requires_grad_()
    expected, pooled = pool(on_cpu), pool(on_gpu)
    assert pooled.stride() == expected.stride()
    torch.testing.assert_close(pooled.cpu(), expected)
    weights = torch.randn_like(expected)
    (pooled * weights.cuda()).sum().backward()
    (expected * weights).sum().backward()
    assert on_cpu.grad is not None and on_gpu.grad is not None
    assert on_gpu.grad.stride() == on_cpu.grad.stride()
    torch.testing.assert_close(on_gpu.grad.cpu(), on_cpu.grad)


@on_a_gpu
def test_a_gpu_spreads_means_out_to_the_bits_of_a_copy() -> None:
    means = torch.randn(3, 4, 2, 64, device="cuda")
    for size, padding in (((16, 8), (0, 0)), ((15, 9), (1, 1)), ((14, 7), (2, 1))):
        copied, gathered = (spread(means, (4, 4), padding, *size) for spread in (spread_by_copy, spread_by_rows))
        assert torch.equal(gathered, copied)


@on_a_gpu
def test_a_captured_pooling_learns_the_same_gradient() -> None:
    x, pool = maps(3, 8, 8, 8, dtype=torch.float32).cuda().requires_grad_(), AveragePool((4, 2))
    weights = torch.randn(3, 8, 2, 4, device="cuda")

    def gradient() -> Tensor:
        return torch.autograd.grad((pool(x) * weights).sum(), x)[0]

    expected = gradient()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradient()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = gradient()
    graph.replay()
    assert torch.equal(captured, expected)


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


def matching_by_autograd(rows: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(centred_cosines(rows), wanted)


def rows_and_wanted(samples: int = 12, features: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    wanted = centred_cosines(F.one_hot(torch.arange(samples) % 3, 3).to(dtype))
    return torch.randn(samples, features, dtype=dtype), wanted


def matched(function: Callable[..., Tensor], rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, int]:
    """Loss, gradient of 0.3 of it, and how many operations both take."""
    rows = rows.detach().requires_grad_()
    with Operations() as operations:
        loss = function(rows, wanted)
        (0.3 * loss).backward()
    assert rows.grad is not None
    return loss.detach(), rows.grad, operations.count


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda rows: rows, id="random"),
        pytest.param(lambda rows: rows[:1].expand_as(rows) * torch.arange(1.0, 13).view(12, 1), id="all alike"),
        pytest.param(lambda rows: rows * 10.0 ** torch.arange(-11, 1).view(12, 1), id="from short to long"),
        pytest.param(lambda rows: rows * (torch.arange(12) % 4 > 0).view(12, 1), id="zero rows"),
        pytest.param(lambda rows: torch.where(torch.arange(12).view(12, 1) < 2, 1.5, rows), id="constant rows"),
        pytest.param(lambda rows: rows.T.contiguous().T, id="transposed"),
    ],
)
def test_similarity_matching_equals_autograd_with_its_gradient(spoil: Callable[[Tensor], Tensor]) -> None:
    rows, wanted = rows_and_wanted()
    rows = spoil(rows)
    (loss, gradient, _), (theirs, expected, _) = (
        matched(function, rows, wanted) for function in (SimilarityMatching.apply, matching_by_autograd)
    )
    assert torch.equal(loss, theirs)
    scale = expected.abs().amax(dim=1, keepdim=True) + 1e-9  # all alike there is none
    torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-8)


def test_similarity_matching_has_the_gradient_of_finite_differences() -> None:
    rows, wanted = rows_and_wanted(5)
    assert torch.autograd.gradcheck(lambda x: SimilarityMatching.apply(x, wanted), rows.requires_grad_())


def test_similarity_matching_in_mixed_precision_multiplies_in_half_and_is_float32() -> None:
    rows, wanted = rows_and_wanted(32, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = [matched(function, rows, wanted)[:2] for function in (SimilarityMatching.apply, matching_by_autograd)]
    (loss, gradient), (theirs, expected) = found
    assert torch.equal(loss, theirs) and not torch.equal(loss, SimilarityMatching.apply(rows, wanted))
    assert loss.dtype == gradient.dtype == torch.float32
    assert (gradient - expected).norm() <= 0.02 * expected.norm()


def test_similarity_matching_is_less_than_half_of_the_operations() -> None:
    ours, theirs = (
        matched(function, *rows_and_wanted())[2] for function in (SimilarityMatching.apply, matching_by_autograd)
    )
    assert 2 * ours <= theirs + 8  # mean, difference, norm, sum, quotient, product, clamp and error are of both
