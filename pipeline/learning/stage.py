"""A stage: a layer group with its optimizers. Maths only; it knows nothing of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import members, segment_ends
from pipeline.learning.local_block import LocalBlock, create_loss
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Packet
from pipeline.network.blocks import canonical
from pipeline.network.spec import BlockShape, Network, build_block

__all__ = ["Stage", "build_stage"]


class Stage:
    """Consecutive blocks, trained together: `forward` returns the packet to hand on, `update` learns from it.

    The worker sends between the two calls. Where nobody waits for the packet, `step` goes segment by segment and holds
    one segment's activations only; both orders give the same bits.
    """

    def __init__(self, index: int, blocks: Sequence[LocalBlock], config: TrainConfig, *, last: bool) -> None:
        self.index, self.blocks, self.config, self.last = index, tuple(blocks), config, last
        self.numerics = self.blocks[0].numerics
        self.wire = self.numerics.dtype if last else self.numerics.wire(config.wire)
        self._labels = torch.empty(0, dtype=torch.int64)
        self._training = True
        self._epoch = 0

    def forward(self, packet: Packet) -> Packet:
        """Activations of a training batch, from the weights before this step's update."""
        x = self._enter(packet, training=True)
        for block in self.blocks:
            x = block.forward(x, packet.step)
        return packet.with_activation(self._leave(x))

    def update(self, gradient: Tensor | None = None) -> Tensor | None:
        """Local losses, backward and optimizer steps for the batch of the last `forward`.

        Args:
            gradient: of the later stages' loss with respect to the packet handed on; global training only.

        Returns:
            The gradient with respect to the packet received, in global training, else None.
        """
        if gradient is not None:
            gradient = canonical(gradient.to(self.numerics.dtype), self.numerics.channels_last)
        for block in reversed(self.blocks):
            gradient = block.update(self._labels, gradient)
        return None if gradient is None else gradient.to(self.numerics.wire(self.config.wire))

    def step(self, packet: Packet) -> Packet:
        """`forward` and `update` in one, segment by segment."""
        x = self._enter(packet, training=True)
        segment: list[LocalBlock] = []
        for block in self.blocks:
            x = block.forward(x, packet.step)
            segment.append(block)
            if not block.gradient_in:
                gradient: Tensor | None = None
                while segment:
                    gradient = segment.pop().update(self._labels, gradient)
        return packet.with_activation(self._leave(x))

    def evaluate(self, packet: Packet) -> Packet:
        """Activations of a batch in evaluation mode; counts the errors of every classifier."""
        x = self._enter(packet, training=False)
        for block in self.blocks:
            x = block.evaluate(x, self._labels)
        return packet.with_activation(self._leave(x))

    def _enter(self, packet: Packet, *, training: bool) -> Tensor:
        """Set mode and learning rate if they change, and bring the activation into the stage's format."""
        assert packet.activation is not None and packet.labels is not None
        if training != self._training:
            self._training = training
            for block in self.blocks:
                block.train(training)
        if training and packet.epoch != self._epoch:
            self._epoch = packet.epoch
            for block in self.blocks:
                block.set_learning_rate(self.config.learning_rate(packet.epoch))
        device = self.numerics.device
        self._labels = packet.labels.to(device, non_blocking=True)
        x = packet.activation.to(device, self.numerics.dtype, non_blocking=True)
        return canonical(x, self.numerics.channels_last)

    def _leave(self, x: Tensor) -> Tensor:
        """Round to the wire's number format; a no-op where it is the activation's own."""
        return x.to(self.wire)

    def inference_state(self) -> dict[str, Tensor]:
        """Weights and batch-norm statistics of the stage's blocks."""
        return {name: tensor for block in self.blocks for name, tensor in block.inference_state().items()}


def build_stage(
    config: TrainConfig,
    network: Network,
    shapes: Sequence[BlockShape],
    classes: int,
    split: Sequence[int],
    index: int,
    numerics: Numerics,
) -> Stage:
    """Build stage `index` of a network cut by `split`, and none of the other blocks.

    Args:
        config: how the blocks learn.
        network: all blocks, not built.
        shapes: of every block.
        classes: number of classes.
        split: blocks of each stage.
        index: of the stage.
        numerics: device and formats.
    """
    own = members(split)[index]
    firsts, lasts = segment_ends(config, shapes)
    blocks = []
    for i in own:
        output = i == len(network) - 1
        loss = create_loss(config, i, shapes[i].features, classes, output=output, segment_end=i in lasts)
        blocks.append(
            LocalBlock(
                i,
                build_block(network[i], config.seed, i),
                loss,
                config,
                numerics,
                gradient_in=i not in lasts,
                gradient_out=i not in firsts,
            )
        )
    return Stage(index, blocks, config, last=index == len(split) - 1)
