"""Local losses: similarity matching, local prediction, both, and their variants without backprop in the layer.

Source: Nøkland & Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, section 3.
Shapes: B batch, C channels, H height, W width, F features, K classes, P length of the target projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AveragePool",
    "FeedbackLinear",
    "LocalLoss",
    "OutputLoss",
    "Pooling",
    "create_local_loss",
    "decoder_pooling",
    "similarity_macs",
    "similarity_matrix",
    "spatial_std",
]


class _SpatialStd(torch.autograd.Function):
    """Unbiased standard deviation over H and W. Written out, because a generic reduction of a channels_last map
    costs as much as the 3x3 convolution before it; here every pass runs along the contiguous channels."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        maps = h.permute(0, 2, 3, 1).flatten(1, 2)  # B, HW, C: a view of a channels_last tensor
        centred = maps - maps.mean(dim=1, keepdim=True)
        std = torch.sqrt((centred * centred).sum(dim=1) / (maps.shape[1] - 1))
        ctx.save_for_backward(centred, std)
        ctx.shape = h.shape
        return std

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        centred, std = ctx.saved_tensors
        b, c, height, width = ctx.shape
        # d std / d h = centred / ((N - 1) std); a constant feature map has no direction of growth: zero.
        scale = (gradients[0] / ((height * width - 1) * std)).masked_fill(std == 0, 0.0)
        grad = centred * scale.unsqueeze(1)
        return cast(Tensor, grad.view(b, height, width, c).permute(0, 3, 1, 2))


def spatial_std(h: Tensor) -> Tensor:
    """Standard deviation (N - 1) of every feature map: [B, C, H, W] -> [B, C]. H * W must be above 1."""
    return cast(Tensor, _SpatialStd.apply(h))


def similarity_matrix(h: Tensor) -> Tensor:
    """Centred cosine similarity between all samples of a batch, [B, ...] -> [B, B], clamped to [-1, 1].

    Feature maps with more than 3 channels and more than one row are first reduced to the standard deviation of
    every map (section 3.1); other activations are flattened. A sample without variation has similarity 0.
    """
    maps = h.ndim == 4 and h.shape[1] > 3 and h.shape[2] > 1
    features = spatial_std(h) if maps else h.flatten(1)
    centred = features - features.mean(dim=1, keepdim=True)
    # vector_norm, not sqrt of a sum: its gradient at an all-zero row is 0 instead of NaN.
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit: Tensor = centred / (1e-8 + norm)
    return (unit @ unit.T).clamp(-1.0, 1.0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The number format that losses are computed in: half precisions go up to float32, wider ones stay."""
    return torch.promote_types(dtype, torch.float32)


class _FeedbackAlignment(torch.autograd.Function):
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


class FeedbackLinear(nn.Module):
    """Linear layer trained by feedback alignment, [B, F] -> [B, P]. Weights and bias start at zero."""

    feedback: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = 1 / math.sqrt(features)
        self.register_buffer("feedback", torch.empty(outputs, features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the backward knows the weights' own number format only
            x = x.to(self.weight.dtype)
            return cast(Tensor, _FeedbackAlignment.apply(x, self.weight, self.bias, self.feedback))


class _AveragePool(torch.autograd.Function):
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


class AveragePool(nn.Module):
    """Average pooling without overlap, [B, C, H, W] -> [B, C, H', W']. Padded zeros count, as in the reference."""

    def __init__(self, kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.kernel, self.padding = kernel, padding

    def forward(self, h: Tensor) -> Tensor:
        return cast(Tensor, _AveragePool.apply(h, self.kernel, self.padding))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, padding={self.padding}"


@dataclass(frozen=True)
class Pooling:
    """Average pooling before a local classifier; a kernel of (1, 1) is none."""

    kernel: tuple[int, int]
    padding: tuple[int, int]

    def module(self) -> nn.Module:
        """The pooling layer."""
        return nn.Identity() if self.kernel == (1, 1) else AveragePool(self.kernel, self.padding)

    def outputs(self, channels: int, height: int, width: int) -> int:
        """Features after pooling and flattening."""
        sides = zip((height, width), self.kernel, self.padding, strict=True)
        return channels * math.prod((side + 2 * pad - k) // k + 1 for side, k, pad in sides)


def decoder_pooling(channels: int, height: int, width: int, limit: int) -> Pooling:
    """Pooling that brings feature maps down to `limit` features: height and width halve in turn until it fits."""
    kh = kw = 1
    rows, columns = height, width
    while channels * rows * columns > limit and (kh < height or kw < width):
        if kh < height:
            kh *= 2
            rows = math.ceil(height / kh)
        if channels * rows * columns > limit and kw < width:
            kw *= 2
            columns = math.ceil(width / kw)
    pad = (kh * (rows - height // kh) // 2, kw * (columns - width // kw) // 2)
    return Pooling((kh, kw), pad)


class LocalLoss(nn.Module):
    """The loss at the end of a block: local prediction, similarity matching, or their weighted sum.

    `beta` weighs similarity against prediction: (1 - beta) * pred + beta * sim; 0 is prediction alone, 1 is
    similarity alone. `decoder`, `similarity` are the local head; each is None where the loss has no such part.
    With `projection` (the -bio variants) the targets are a fixed random projection of the one-hot labels.
    """

    projection: Tensor | None

    def __init__(
        self,
        classes: int,
        *,
        decoder: nn.Module | None,
        similarity: nn.Module | None,
        pool: nn.Module,
        beta: float,
        projection: Tensor | None,
    ) -> None:
        super().__init__()
        self.classes, self.beta = classes, beta
        self.decoder, self.similarity, self.pool = decoder, similarity, pool
        self.register_buffer("projection", projection)  # [P, K]

    def forward(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch and, where the block has a classifier, its class scores.

        Args:
            h: activation of the block before dropout and pooling, [B, C, H, W] or [B, F].
            labels: class indices, int64 [B].

        Returns:
            Scalar loss (float32) and class scores [B, K] without gradient, or None.
        """
        onehot = F.one_hot(labels, self.classes).to(_wide(h.dtype))
        targets = onehot if self.projection is None else onehot @ self.projection.T
        loss, scores = None, None
        if self.decoder is not None:
            loss, scores = self._predict(self.decoder, h, labels, targets)
        if self.similarity is not None:
            matching = self._match(self.similarity, h, targets)
            loss = matching if loss is None else (1 - self.beta) * loss + self.beta * matching
        assert loss is not None
        return loss, scores

    def _predict(self, decoder: nn.Module, h: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the local classifier; binary cross-entropy against the binarised targets in -bio."""
        outputs = decoder(self.pool(h).flatten(1))
        outputs = outputs.to(_wide(outputs.dtype))
        if self.projection is None:
            return F.cross_entropy(outputs, labels), outputs.detach()
        loss = F.binary_cross_entropy_with_logits(outputs, (targets > 0).to(outputs.dtype))
        # The binary cross-entropy against the code of class k is, up to a term without k, minus this product.
        codes = (self.projection > 0).to(outputs.dtype)  # [P, K]: column k is the code of class k
        return loss, outputs.detach() @ codes

    def _match(self, similarity: nn.Module, h: Tensor, targets: Tensor) -> Tensor:
        """Mean squared difference of the B x B similarity matrices of features and targets (equation 3)."""
        features = similarity(h)
        features = features.to(_wide(features.dtype))
        return F.mse_loss(similarity_matrix(features), similarity_matrix(targets))


class OutputLoss(nn.Module):
    """Cross-entropy on the class scores of the output layer, times `scale` (1 - beta where the loss is predsim)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch and the class scores without gradient; h is [B, K], labels are int64 [B]."""
        scores = h.to(_wide(h.dtype))
        return F.cross_entropy(scores, labels) * self.scale, scores.detach()


def create_local_loss(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    *,
    beta: float,
    decoder_dim: int,
    target_projection: int,
    similarity_head: str = "conv",
) -> LocalLoss:
    """The local loss `name` (pred, sim, predsim or a -bio variant) with a head sized for an activation.

    Args:
        name: name of the local part; for `glob+X` it is X.
        shape: of one sample's activation, (C, H, W) or any other, which is then flattened.
        classes: number of classes.
        beta: weight of similarity in predsim.
        decoder_dim: most inputs of the classifier.
        target_projection: P, for the -bio variants.
        similarity_head: what stands before the similarity matrix, one of `config.SIMILARITY_HEADS`.
    """
    kind, _, variant = name.partition("-")
    bio = variant == "bio"
    pooling, features = Pooling((1, 1), (0, 0)), math.prod(shape)
    if len(shape) == 3:
        channels, height, width = shape
        pooling = decoder_pooling(channels, height, width, decoder_dim)
        features = pooling.outputs(channels, height, width)
    decoder: nn.Module | None = None
    if "pred" in kind:
        decoder = FeedbackLinear(features, target_projection) if bio else _zero_weight(nn.Linear(features, classes))
    similarity: nn.Module | None = None
    if "sim" in kind:
        similarity = pooling.module() if bio else _similarity_head(shape, similarity_head)
    projection = nn.Linear(classes, target_projection, bias=False).weight.detach() if bio else None
    return LocalLoss(
        classes, decoder=decoder, similarity=similarity, pool=pooling.module(), beta=beta, projection=projection
    )


@dataclass(frozen=True)
class _Saving:
    """How a similarity head on feature maps is made cheaper than the paper's: less space, or fewer connections."""

    pool: int = 1
    stride: int = 1
    groups: int = 1

    @classmethod
    def named(cls, name: str, channels: int, side: int) -> _Saving:
        """Of a name in `config.SIMILARITY_HEADS` other than `none`, on maps whose shorter side is `side`."""
        kind, _, size = name.partition("-")
        factor, _, least = size.partition("x")
        if kind == "grouped":
            return cls(groups=math.gcd(channels, int(factor)))
        return cls() if kind == "conv" else cls(**{kind: _step(side, int(factor), int(least or 2))})


def _similarity_head(shape: tuple[int, ...], name: str) -> nn.Module:
    """The layer before the similarity matrix, by its name in `config.SIMILARITY_HEADS`.

    The paper's is a 3x3 convolution with as many maps as the block, or a square matrix for flat activations. The
    cheap ones save on space, and leave flat activations the square matrix: `pool-4` averages 4x4 windows at most and
    leaves two rows at least, `pool-4x4` leaves four, `stride-4` skips likewise. `none` has no weights at all.
    """
    if len(shape) != 3:
        features = math.prod(shape)
        matrix = nn.Linear(features, features, bias=False)
        return nn.Flatten() if name == "none" else nn.Sequential(nn.Flatten(), matrix)
    if name == "none":
        return nn.Identity()
    channels, saving = shape[0], _Saving.named(name, shape[0], min(shape[1:]))
    convolution = nn.Conv2d(channels, channels, 3, stride=saving.stride, padding=1, groups=saving.groups, bias=False)
    return convolution if saving.pool == 1 else nn.Sequential(AveragePool((saving.pool, saving.pool)), convolution)


def similarity_macs(shape: tuple[int, ...], name: str) -> int:
    """Multiply-accumulates of one sample in the similarity head `name` on activations of `shape`."""
    features = math.prod(shape)
    if name == "none":
        return 0
    if len(shape) != 3:
        return features * features
    channels, height, width = shape
    saving = _Saving.named(name, channels, min(height, width))
    rows, columns = (-(-(side // saving.pool) // saving.stride) for side in (height, width))
    return 9 * channels * (channels // saving.groups) * rows * columns


def _step(side: int, wanted: int, least: int) -> int:
    """The largest of wanted, wanted / 2, ... 1 that leaves at least `least` of `side` rows; a deviation needs two."""
    return wanted if wanted == 1 or side // wanted >= least else _step(side, wanted // 2, least)


def _zero_weight(layer: nn.Linear) -> nn.Linear:
    """Zero the weights, keep the bias's random start: the reference's initialisation of every classifier."""
    nn.init.zeros_(layer.weight)
    return layer
