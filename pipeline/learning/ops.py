"""Autograd functions written out, where the generic ones cost too much or do not exist."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AveragePoolFunction", "FeedbackAlignment", "SpatialStd", "SpatialStdInTwoPasses", "spatial_std"]


def _positions(h: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, HW, C]: a view of a channels_last tensor, its channels contiguous."""
    return h.permute(0, 2, 3, 1).flatten(1, 2)


def _std_scale(gradient: Tensor, std: Tensor, positions: int) -> Tensor:
    """What a centred position is multiplied by, [B, C]: d std / d h = centred / ((N - 1) std)."""
    # A constant feature map has no direction of growth: zero.
    return (gradient / ((positions - 1) * std)).masked_fill(std == 0, 0.0)


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
        grad = centred * _std_scale(gradients[0], std, height * width).unsqueeze(1)
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
        scale = _std_scale(gradients[0], std, height * width)
        grad = torch.addcmul((-mean * scale).unsqueeze(1), _positions(h), scale.unsqueeze(1))
        return grad.view(b, height, width, c).permute(0, 3, 1, 2)


def spatial_std(h: Tensor) -> Tensor:
    """Standard deviation (N - 1) of every feature map: [B, C, H, W] -> [B, C]. H * W must be above 1."""
    function = SpatialStdInTwoPasses if h.is_cuda else SpatialStd
    return cast(Tensor, function.apply(h))


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


class AveragePoolFunction(torch.autograd.Function):
    """Average pooling without overlap. Its own backward, because torch's fills a map in NCHW and copies it to
    channels_last on a CPU, at a fifth of a narrow network's step; spreading the means out is one pass."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.shape, ctx.kernel, ctx.padding = h.shape, kernel, padding
        return F.avg_pool2d(h, kernel, kernel, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kh, kw), (ph, pw) = ctx.kernel, ctx.padding
        b, c, height, width = ctx.shape
        means = (gradients[0] / (kh * kw)).permute(0, 2, 3, 1).contiguous()
        rows, columns = means.shape[1:3]
        spread = means[:, :, None, :, None].expand(b, rows, kh, columns, kw, c).reshape(b, rows * kh, columns * kw, c)
        crop = (-pw, width + pw - columns * kw, -ph, height + ph - rows * kh)  # negative: cut off, else zeros
        grad = F.pad(spread, (0, 0, *crop)) if any(crop) else spread
        return grad.permute(0, 3, 1, 2), None, None
