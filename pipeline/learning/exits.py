"""Answers on the way: a trained network with the local classifiers of its blocks.

A block with a classifier of its own is an exit; the output layer is the last one.
Shapes: B batch, C channels, H height, W width, F features, K classes, P length of the target projection, E exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from pipeline.config.method import Method
from pipeline.errors import ConfigError
from pipeline.learning.balance import segment_ends
from pipeline.learning.classifiers import CLASSIFIERS
from pipeline.learning.exit_figures import confidence
from pipeline.learning.heads import decoder_pool, pooled_features
from pipeline.learning.losses import class_scores, classifier_outputs
from pipeline.network.blocks import Block, canonical
from pipeline.network.flops import FlopCounter
from pipeline.network.formats import lay_out
from pipeline.network.spec import BlockShape
from pipeline.text import shown

__all__ = ["Classifier", "Confident", "EarlyExits", "create_classifiers"]


class Classifier(nn.Module):
    """A block's own classifier without its loss: activation [B, C, H, W] or [B, F] to class scores [B, K].

    Args:
        decoder: what answers.
        pool: before it; without one it judges what the block hands on.
        projection: of the targets in -bio, [P, K].
        macs: multiply-accumulates of a sample; pooling does not count.
    """

    projection: Tensor | None

    def __init__(self, decoder: nn.Module, pool: nn.Module | None, projection: Tensor | None, macs: int) -> None:
        super().__init__()
        self.decoder, self.pool, self.macs = decoder, pool, macs
        self.register_buffer("projection", projection)

    @property
    def judges_handed_on(self) -> bool:
        """Whether it sees what the block hands on, and not what the block computes before."""
        return self.pool is None

    def forward(self, h: Tensor) -> Tensor:
        return class_scores(classifier_outputs(self.decoder, self.pool, h), self.projection)


def create_classifiers(config: Method, shapes: Sequence[BlockShape], classes: int) -> dict[int, Classifier]:
    """The local classifiers of a network by block, without weights, on the meta device; none where the loss has none.

    With a local loss only the ends of segments have one, with `glob+X` every block; the output layer is its own.
    """
    spec = config.loss_spec
    if not spec.prediction:
        return {}
    last = len(shapes) - 1
    ends = range(last) if spec.backpropagates else sorted(segment_ends(config, shapes)[1] - {last})
    return {index: _classifier(config, shapes[index], classes) for index in ends}


def _classifier(config: Method, shape: BlockShape, classes: int) -> Classifier:
    if config.classifier in CLASSIFIERS:
        with torch.device("meta"):
            decoder = CLASSIFIERS[config.classifier](shape.outputs, classes, False)
            return Classifier(decoder, None, None, _macs(decoder, shape.outputs))
    pool = decoder_pool(shape.features, config.decoder_dim)
    features = pooled_features(pool, shape.features)
    with torch.device("meta"):
        code = config.target_projection if config.loss_spec.bio else None
        projection = None if code is None else torch.empty(code, classes)
        decoder = nn.Linear(features, code or classes)
    return Classifier(decoder, pool, projection, decoder.weight.numel() + (code or 0) * classes)


def _macs(decoder: nn.Module, shape: tuple[int, ...]) -> int:
    samples, counter = 2, FlopCounter()
    with torch.no_grad(), counter:
        decoder.eval()(torch.zeros(samples, *shape, device="meta"))
    return counter.flops // (2 * samples)


class Confident(NamedTuple):
    """Answers of samples that left as soon as an exit was sure: class scores [B, K], place in `exits` int64 [B]."""

    scores: Tensor
    exit: Tensor


class EarlyExits(nn.Module):
    """A network that answers at every exit, or for every sample at the first exit that is sure of it.

    Args:
        blocks: of the network, which are kept, not copied.
        classifiers: by block; the output layer has none.
        shapes: of the blocks.
        layers: what the blocks are called.
        classes: number of classes.

    Attributes:
        exits: blocks that answer; the last is the output layer.
        layers: what these are called.
        costs: multiply-accumulates to answer at each exit alone, with the blocks up to it and its own classifier,
            relative to the network alone.
        cumulative_costs: the same with the classifiers of all exits before, which `confident` tries.
        shape: of one sample.
        classes: number of classes.
    """

    def __init__(
        self,
        blocks: nn.Sequential,
        classifiers: Mapping[int, Classifier],
        shapes: Sequence[BlockShape],
        layers: Sequence[str],
        classes: int,
    ) -> None:
        super().__init__()
        last = len(blocks) - 1
        self.blocks = blocks
        self.classifiers = nn.ModuleDict({str(index): head for index, head in sorted(classifiers.items())})
        self.exits = (*sorted(classifiers), last)
        self.layers = tuple(layers[index] for index in self.exits)
        self.shape, self.classes = shapes[0].inputs, classes
        until = list(accumulate(shape.macs for shape in shapes))
        heads = [*(head.macs for _, head in sorted(classifiers.items())), 0]
        whole = max(until[-1], 1)  # layers of which no arithmetic counts have none
        passed = [until[index] for index in self.exits]
        self.costs = tuple((macs + head) / whole for macs, head in zip(passed, heads, strict=True))
        tried = accumulate(heads)
        self.cumulative_costs = tuple((macs + head) / whole for macs, head in zip(passed, tried, strict=True))
        self._manners = [shape.manners for shape in shapes]
        self._canonical = False

    def as_trained(self) -> Self:
        """Lay weights and activations out in memory as in training: scores have the bits of the run's evaluation.

        Otherwise the last exit has those of the network alone, as `load_model` gives it.
        """
        for block, manners in zip(self.blocks, self._manners, strict=True):
            lay_out(block, manners.channels_last)
        lay_out(self.classifiers, channels_last=True)
        self._canonical = True
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Class scores [B, K] of every exit, in the order of `exits`."""
        found = []
        x = self._laid_out(x)
        for index in range(len(self.blocks)):
            x, scores = self._pass(index, x)
            if scores is not None:
                found.append(scores)
        return [*found, x]

    @torch.no_grad()
    def confident(self, x: Tensor, threshold: float) -> Confident:
        """Let every sample leave at the first exit whose greatest probability is at least `threshold`.

        Blocks after it compute the others only, which all leave at the last exit. Raises ConfigError for a threshold
        that is no probability.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {shown(threshold)}; give a probability, from 0 to 1")
        answers = _Answers(len(x), x.device)
        x = self._laid_out(x)
        for index in range(len(self.blocks)):
            x, scores = self._pass(index, x)
            if scores is not None:
                stay = answers.take(scores, confidence(scores) >= threshold)
                if not len(answers.left):
                    break
                x = x if bool(stay.all()) else self._laid_out(x[stay])
        else:
            answers.take(x, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return answers.given()

    def _pass(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a block hands on, and the class scores of its classifier, where it has one."""
        block, manners = cast(Block, self.blocks[index]), self._manners[index]
        h = block.features(manners.given(x))
        out: Tensor = block.hand_on(manners.handed(h))
        key, scores = str(index), None
        if key in self.classifiers:
            classifier = cast(Classifier, self.classifiers[key])
            scores = classifier(out if classifier.judges_handed_on else h)
        return self._laid_out(out), scores

    def _laid_out(self, x: Tensor) -> Tensor:
        return canonical(x) if self._canonical else x


class _Answers:
    """The answers of a batch as its samples leave; `left` are the places in the batch of those still there."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self.left = torch.arange(samples, device=device)
        self._exit = torch.zeros(samples, dtype=torch.int64, device=device)
        self._scores: Tensor | None = None
        self._exits = 0

    def take(self, scores: Tensor, leave: Tensor) -> Tensor:
        """Of those that are left take the answers of those that leave here, bool [left]; which of them stay."""
        if self._scores is None:
            self._scores = scores.new_zeros(len(self.left), scores.shape[1])
        going, stay = self.left[leave], ~leave
        self._scores[going] = scores[leave].to(self._scores.dtype)
        self._exit[going] = self._exits
        self._exits += 1
        self.left = self.left[stay]
        return stay

    def given(self) -> Confident:
        assert self._scores is not None
        return Confident(self._scores, self._exit)
