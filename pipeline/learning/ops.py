"""Autograd functions written out, where the generic ones cost too much or do not exist."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "AveragePoolFunction",
    "FeedbackAlignment",
    "SimilarityMatching",
    "SpatialStd",
    "SpatialStdInTwoPasses",
    "centred_cosines",
    "spatial_std",
    "spread_by_copy",
    "spread_by_rows",
    "window_means",
]


def _positions(h: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, HW, C]: a view of a channels_last tensor, its channels contiguous."""
    return h.permute(0, 2, 3, 1).flatten(1, 2)


def _std_scale(gradient: Tensor, std: Tensor, freedom: int) -> Tensor:
    """What a centred position is multiplied by, [B, C]: d std / d h = centred / ((N - 1) std), `freedom` is N - 1."""
    # A constant feature map has no direction of growth: zero.
    return (gradient / (freedom * std)).masked_fill(std == 0, 0.0)


class SpatialStd(torch.autograd.Function):
    """Unbiased standard deviation over H and W. Written out, because a generic reduction of a channels_last map
    costs as much as the 3x3 convolution before it; here every pass runs along the contiguous channels."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        maps = _positions(h)
        centred = maps - maps.mean(dim=1, keepdim=True)
        std = torch.sqrt((centred * centred).sum(dim=1) / (maps.shape[1] - 1))
        ctx.save_for_backward(centred, std)
        ctx.shape = h.shape
        return std

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        centred, std = ctx.saved_tensors
        b, c, height, width = ctx.shape
        grad = centred * _std_scale(gradients[0], std, height * width - 1).unsqueeze(1)
        return cast(Tensor, grad.view(b, height, width, c).permute(0, 3, 1, 2))


class SpatialStdInTwoPasses(torch.autograd.Function):
    """The same, reading a map once forward and once backward; the centred map is never written.

    For a GPU, where passes are what it costs. At 128x256x32x32 in fp32 an H200 takes 77 us for the statistics and 108
    for the gradient; mean, difference, square and sum of the other way are 42 + 105 + 66 + 42, its gradient 105. A CPU
    takes three times as long by it, nearly all in `var_mean`. The gradient is a difference of products with the map,
    so that it is rounded to the size of the mean where the other is rounded to the deviation.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        variance, mean = torch.var_mean(_positions(h), dim=1)
        std = variance.sqrt()
        ctx.save_for_backward(h, mean, std)
        return std

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        h, mean, std = ctx.saved_tensors
        b, c, height, width = h.shape
        minus = _std_scale(gradients[0], std, 1 - height * width)  # the sign costs no launch here
        grad = torch.addcmul((mean * minus).unsqueeze(1), _positions(h), minus.unsqueeze(1), value=-1)
        return grad.view(b, height, width, c).permute(0, 3, 1, 2)


def spatial_std(h: Tensor) -> Tensor:
    """Standard deviation (N - 1) of every feature map: [B, C, H, W] -> [B, C]. H * W must be above 1."""
    function = SpatialStdInTwoPasses if h.is_cuda else SpatialStd
    return cast(Tensor, function.apply(h))


def _unit_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred rows over their lengths, [B, F]; their norms, [B, 1]; the lengths, a little above the norms."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    # vector_norm, not sqrt of a sum: its gradient at an all-zero row is 0 instead of NaN.
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    length = norm + 1e-8
    return centred / length, norm, length


def _cosines(unit: Tensor) -> Tensor:
    return (unit @ unit.T).clamp_(-1.0, 1.0)


def centred_cosines(rows: Tensor) -> Tensor:
    """Cosines between centred rows, clamped to [-1, 1]: [B, F] -> [B, B]. Those of a constant row are zero."""
    return _cosines(_unit_rows(rows)[0])


class SimilarityMatching(torch.autograd.Function):
    """Mean squared difference between the centred cosines of rows, [B, F], and wanted ones, [B, B].

    Similarity matching of Nøkland & Eidnes 2019 (section 3.1, equation 3). Its gradient is written out, because
    autograd makes twice as many operations of it, each so small that on a GPU its launch is what it costs. With unit
    rows u, cosines S, wanted T and a = 4 / B^2 (S - T) u, a row's gradient is a / length - u (a . u) / norm:
    S and T are symmetric, so that one product serves for both factors of S; what is made of centred rows is centred;
    and a cosine that was rounded to beyond 1 pulls along u alone, which is taken out.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, wanted: Tensor) -> Tensor:
        unit, norm, length = _unit_rows(rows)
        cosines = _cosines(unit)
        ctx.save_for_backward(cosines, unit, norm, length, wanted)
        return F.mse_loss(cosines, wanted)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        cosines, unit, norm, length, wanted = ctx.saved_tensors
        # The product is in the number format of the forward's, a half one in mixed precision; alpha is no launch.
        error, narrow = ((cosines - wanted) * gradients[0]).to(cosines.dtype), unit.to(cosines.dtype)
        pull = torch.addmm(narrow, error, narrow, beta=0, alpha=4 / wanted.numel()).to(unit.dtype)
        along = (pull * unit).sum(dim=1, keepdim=True) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return torch.addcmul(pull / length, unit, along, value=-1), None


class FeedbackAlignment(torch.autograd.Function):
    """Linear map whose input gradient goes through fixed random weights (Lillicrap et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, feedback = ctx.saved_tensors
        (grad,) = gradients
        grad_x = grad @ feedback if ctx.needs_input_grad[0] else None
        return grad_x, grad.T @ x, grad.sum(0), None


def window_means(h: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Average pooling by a mean over reshaped axes, for windows that tile the map: [B, C, H, W] -> [B, C, H', W'].

    A reduction bound by memory, where a GPU's own pooling is bound by instructions: 41 us instead of 71 on an H200,
    for 128x256x32x32 in fp32 and windows of 4x4. The result is channels_last, and so should h be.
    """
    (kh, kw), (b, c, height, width) = kernel, h.shape
    windows = h.permute(0, 2, 3, 1).view(b, height // kh, kh, width // kw, kw, c)
    return windows.mean(dim=(2, 4)).permute(0, 3, 1, 2)


def spread_by_copy(
    means: Tensor, kernel: tuple[int, int], padding: tuple[int, int], height: int, width: int
) -> Tensor:
    """Every window's value at all of its positions, zeros at those of none: [B, H', W', C] -> [B, H, W, C]."""
    (kh, kw), (ph, pw) = kernel, padding
    b, rows, columns, c = means.shape
    spread = means[:, :, None, :, None].expand(b, rows, kh, columns, kw, c).reshape(b, rows * kh, columns * kw, c)
    crop = (-pw, width + pw - columns * kw, -ph, height + ph - rows * kh)  # negative: cut off, else zeros
    return F.pad(spread, (0, 0, *crop)) if any(crop) else spread


def spread_by_rows(
    means: Tensor, kernel: tuple[int, int], padding: tuple[int, int], height: int, width: int
) -> Tensor:
    """The same, to the bit, as one gather of whole rows of channels.

    A GPU gathers rows in vectors, while a copy of six dimensions works out the address of every value: 101 us on an
    H200 for 128x256x32x32 in fp32, where a plain copy takes 66. The window of every position is worked out anew, in
    two kernels on B H W numbers: an index kept for later could be freed, or not yet filled, under a captured graph.
    """
    (kh, kw), (ph, pw) = kernel, padding
    beyond = (math.ceil((width + pw) / kw) - means.shape[2], math.ceil((height + ph) / kh) - means.shape[1])
    if any(beyond):  # positions after the last window: they get one of zeros
        means = F.pad(means, (0, 0, 0, beyond[0], 0, beyond[1]))
    b, rows, columns, c = means.shape
    windows = torch.arange(b * rows * columns, device=means.device).view(b, rows, 1, columns, 1)
    windows = windows.expand(b, rows, kh, columns, kw).reshape(b, rows * kh, columns * kw)
    index = windows[:, ph : ph + height, pw : pw + width].reshape(-1)
    return means.view(-1, c).index_select(0, index).view(b, height, width, c)


class AveragePoolFunction(torch.autograd.Function):
    """Average pooling without overlap. Its own backward, because torch's fills a map in NCHW and copies it to
    channels_last on a CPU, at a fifth of a narrow network's step; spreading the means out is one pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.shape, ctx.kernel, ctx.padding = h.shape, kernel, padding
        tiled = not any(padding) and h.shape[2] % kernel[0] == h.shape[3] % kernel[1] == 0
        if h.is_cuda and tiled and h.is_contiguous(memory_format=torch.channels_last):
            return window_means(h, kernel)
        return F.avg_pool2d(h, kernel, kernel, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (kh, kw) = gradients, ctx.kernel
        means = (gradient / (kh * kw)).permute(0, 2, 3, 1).contiguous()
        spread = spread_by_rows if gradient.is_cuda else spread_by_copy
        grad = spread(means, ctx.kernel, ctx.padding, *ctx.shape[2:])
        return grad.permute(0, 3, 1, 2), None, None
