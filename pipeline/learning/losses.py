"""Local losses: similarity matching, local prediction, both, and their variants without backprop in the layer.

Source: Nøkland & Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, section 3.
Shapes: B batch, C channels, H height, W width, F features, K classes, P length of the target projection.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.method import Method
from pipeline.learning.classifiers import CLASSIFIERS
from pipeline.learning.heads import (
    SIMILARITY_HEADS,
    FeedbackLinear,
    classifier_layer,
    decoder_pool,
    pooled_features,
)
from pipeline.learning.muon import score_weights
from pipeline.learning.numerics import unmixed
from pipeline.learning.ops import SimilarityMatching, centred_cosines, spatial_std
from pipeline.network.spec import HeadBuilder

__all__ = [
    "LocalLoss",
    "OutputLoss",
    "Targets",
    "class_scores",
    "classifier_outputs",
    "create_local_loss",
    "similarity_matrix",
]


def _rows(h: Tensor) -> Tensor:
    """What the similarity of samples is of, [B, ...] -> [B, F].

    Feature maps with more than 3 channels and more than one row are reduced to the standard deviation of every map
    (section 3.1); other activations are flattened.
    """
    maps = h.ndim == 4 and h.shape[1] > 3 and h.shape[2] > 1
    return spatial_std(h) if maps else h.flatten(1)


def similarity_matrix(h: Tensor) -> Tensor:
    """Centred cosine similarity between all samples of a batch, [B, ...] -> [B, B], clamped to [-1, 1].

    Of feature maps it is that of their standard deviations. A sample without variation has similarity 0.
    """
    return centred_cosines(_rows(h))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The number format that losses are computed in: half precisions go up to float32, wider ones stay."""
    return torch.promote_types(dtype, torch.float32)


class Targets:
    """The labels of a batch, int64 [B], and what losses compare with: worked out once for all blocks of a stage.

    `refill` leaves every tensor where it is, so that whoever holds one finds the next batch in it.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self._onehot: dict[tuple[int, torch.dtype], Tensor] = {}
        self._similarities: dict[tuple[int, torch.dtype], Tensor] = {}

    def refill(self, labels: Tensor) -> None:
        """The labels of another batch of the same size, on any device."""
        self.labels.copy_(labels, non_blocking=True)
        for onehot in self._onehot.values():
            onehot.zero_().scatter_(1, self.labels.unsqueeze(1), 1)
        for (classes, dtype), similarities in self._similarities.items():
            similarities.copy_(self._compared(classes, dtype))

    def onehot(self, classes: int, dtype: torch.dtype) -> Tensor:
        """[B, K]."""
        key = (classes, dtype)
        if key not in self._onehot:
            self._onehot[key] = F.one_hot(self.labels, classes).to(dtype)
        return self._onehot[key]

    def similarities(self, classes: int, dtype: torch.dtype) -> Tensor:
        """Similarity matrix of the one-hot labels, [B, B]."""
        key = (classes, dtype)
        if key not in self._similarities:
            self._similarities[key] = self._compared(classes, dtype)
        return self._similarities[key]

    def _compared(self, classes: int, dtype: torch.dtype) -> Tensor:
        # A block asks for it in mixed precision, `refill` outside: a run that goes on must find the same numbers.
        with unmixed(self.labels):
            return similarity_matrix(self.onehot(classes, dtype))


def classifier_outputs(decoder: nn.Module, pool: nn.Module | None, h: Tensor) -> Tensor:
    """What a local classifier makes of an activation: class scores [B, K], or [B, P] in -bio; float32 or wider.

    Without a `pool` the decoder takes the activation as it is.
    """
    outputs: Tensor = decoder(h if pool is None else pool(h).flatten(1))
    return outputs.to(_wide(outputs.dtype))


def class_scores(outputs: Tensor, projection: Tensor | None) -> Tensor:
    """Class scores [B, K] of a local classifier's outputs; `projection` [P, K] where there is one."""
    if projection is None:
        return outputs
    # The binary cross-entropy against the code of class k is, up to a term without k, minus this product.
    codes = (projection > 0).to(outputs.dtype)  # [P, K]: column k is the code of class k
    return outputs @ codes


class LocalLoss(nn.Module):
    """The loss at the end of a block: local prediction, similarity matching, or their weighted sum.

    `beta` weighs similarity against prediction: (1 - beta) * pred + beta * sim; 0 is prediction alone, 1 is
    similarity alone. `decoder`, `similarity` are the local head; each is None where the loss has no such part.
    With `projection` (the -bio variants) the targets are a fixed random projection of the one-hot labels.
    Without a `pool` the decoder judges what the block hands on instead of h; `smoothing` is of its targets.
    """

    projection: Tensor | None

    def __init__(
        self,
        classes: int,
        *,
        decoder: nn.Module | None,
        similarity: nn.Module | None,
        pool: nn.Module | None,
        beta: float,
        projection: Tensor | None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes, self.beta, self.smoothing = classes, beta, smoothing
        self.decoder, self.similarity, self.pool = decoder, similarity, pool
        self.register_buffer("projection", projection)  # [P, K]

    @property
    def judges_handed_on(self) -> bool:
        """Whether the classifier sees what the block hands on, and not h."""
        return self.decoder is not None and self.pool is None

    def forward(self, h: Tensor, targets: Targets, handed_on: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch and, where the block has a classifier, its class scores.

        Args:
            h: activation of the block before dropout and pooling, [B, C, H, W] or [B, F].
            targets: of the batch.
            handed_on: activation after them, where `judges_handed_on`.

        Returns:
            Scalar loss (float32) and class scores [B, K] without gradient, or None.
        """
        dtype = _wide(h.dtype)
        projected = None
        if self.projection is not None:
            projected = targets.onehot(self.classes, dtype) @ self.projection.T
        loss, scores = None, None
        if self.decoder is not None:
            seen = h if handed_on is None else handed_on
            loss, scores = self._predict(self.decoder, seen, targets.labels, projected)
        if self.similarity is not None:
            wanted = targets.similarities(self.classes, dtype) if projected is None else similarity_matrix(projected)
            matching = self._match(self.similarity, h, wanted)
            loss = matching if loss is None else torch.lerp(loss, matching, self.beta)
        assert loss is not None
        return loss, scores

    def _predict(
        self, decoder: nn.Module, h: Tensor, labels: Tensor, projected: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the local classifier; binary cross-entropy against the binarised targets in -bio."""
        outputs = classifier_outputs(decoder, self.pool, h)
        if projected is None:
            loss = F.cross_entropy(outputs, labels, label_smoothing=self.smoothing)
        else:
            loss = F.binary_cross_entropy_with_logits(outputs, (projected > 0).to(outputs.dtype))
        return loss, class_scores(outputs.detach(), self.projection)

    def score_weights(self) -> list[nn.Parameter]:
        """The parameters whose outputs are class scores, or their codes in -bio; none without a classifier."""
        return [] if self.decoder is None else score_weights(self.decoder)

    def classifier_state(self) -> dict[str, Tensor]:
        """What the local classifier needs to answer: its own, in -bio the projection; empty where there is none.

        Feedback weights only train.
        """
        if self.decoder is None:
            return {}
        state = self.state_dict()
        return {n: t for n, t in state.items() if n.startswith(("decoder.", "projection")) and n != "decoder.feedback"}

    def _match(self, similarity: nn.Module, h: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared difference of the B x B similarity matrices of features and targets (equation 3)."""
        features = similarity(h)
        features = features.to(_wide(features.dtype))
        return cast(Tensor, SimilarityMatching.apply(_rows(features), wanted))


class OutputLoss(nn.Module):
    """Cross-entropy on the class scores of the output layer, times `scale` (1 - beta where the loss is predsim)."""

    def __init__(self, scale: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        self.scale, self.smoothing = scale, smoothing

    def forward(self, h: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch and the class scores without gradient; h is [B, K]."""
        scores = h.to(_wide(h.dtype))
        loss = F.cross_entropy(scores, targets.labels, label_smoothing=self.smoothing)
        return loss * self.scale, scores.detach()


def create_local_loss(
    config: Method,
    shape: tuple[int, ...],
    classes: int,
    similarity_head: HeadBuilder | None = None,
    *,
    handed_on: tuple[int, ...] | None = None,
) -> LocalLoss:
    """The local loss of a block, with a head sized for an activation.

    Args:
        config: names the loss; for `glob+X` its part X counts.
        shape: of one sample's activation, (C, H, W) or any other, which is then flattened.
        similarity_head: what stands before the similarity matrix, where it is not the configured one.
        handed_on: shape of what the block hands on of it; the same without.
    """
    spec, beta = config.loss_spec, config.beta
    assert beta is not None
    pool: nn.Module | None = decoder_pool(shape, config.decoder_dim)
    similarity_pool, decoder = pool, None
    if spec.prediction and config.classifier in CLASSIFIERS:
        build_classifier, pool = CLASSIFIERS[config.classifier], None
        decoder = build_classifier(handed_on or shape, classes, config.head_start == "zero")
    elif spec.prediction:
        assert pool is not None
        features = pooled_features(pool, shape)
        zero = config.head_start == "zero"
        decoder = (
            FeedbackLinear(features, config.target_projection)
            if spec.bio
            else classifier_layer(features, classes, zero=zero)
        )
    similarity: nn.Module | None = None
    if spec.similarity:
        build = similarity_head or SIMILARITY_HEADS[config.similarity_head]
        similarity = build(shape) if spec.similarity_head else similarity_pool
    projection = nn.Linear(classes, config.target_projection, bias=False).weight.detach() if spec.bio else None
    return LocalLoss(
        classes,
        decoder=decoder,
        similarity=similarity,
        pool=pool,
        beta=beta,
        projection=projection,
        smoothing=config.label_smoothing,
    )
