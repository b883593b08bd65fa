"""A stage: whole segments and their optimizer. Maths only; it knows nothing of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.errors import StageFailure
from pipeline.learning.averaging import follow, share_of_new
from pipeline.learning.balance import members, segment_ends
from pipeline.learning.captured import Acting, Capture, run_forward, run_segments, run_update
from pipeline.learning.compiled import check_compiler
from pipeline.learning.graphs import CudaGraphs
from pipeline.learning.local_block import LocalBlock, create_loss
from pipeline.learning.losses import Targets
from pipeline.learning.meter import Meter
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import create_optimizer, set_learning_rate
from pipeline.learning.packet import Packet, Position, Signature, TensorSpec, labelled
from pipeline.learning.scores import BlockScore
from pipeline.network.blocks import canonical
from pipeline.network.spec import BlockShape, Network, build_block

__all__ = ["Stage", "Trainable", "build_stage"]

Scores = tuple[BlockScore, ...]


class Trainable(Protocol):
    """All that the loop of a process knows of a stage. The queues send between `forward` and `update`."""

    index: int
    takes: Signature
    gives: Signature
    device: torch.device

    def forward(self, packet: Packet) -> Packet:
        """What is handed on for a training batch, from the weights before this step's update. It has no graph."""

    def update(self, gradient: Tensor | None = None) -> Tensor | None:
        """Learn from the batch of the last `forward`; gradients come and go in global training only."""

    def step(self, packet: Packet) -> Packet:
        """`forward` and `update` in one, where nobody waits for the packet; the same bits."""

    def evaluate(self, packet: Packet) -> Packet:
        """What is handed on for a test batch, whose errors are counted."""

    def scores(self, *, reset: bool) -> tuple[Scores, Scores]:
        """Training and test scores of every block; with `reset` exact, waiting for the device, and started over."""

    def check(self, at: Position) -> None:
        """Raise StageFailure if training has diverged: a loss since the last exact scores, or a weight, is not finite.

        Waits for the device; `at` is where training has come to.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that the rest of the run depends on, live: whoever keeps it copies it."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a copy of `state_dict`."""


class Stage:
    """Consecutive blocks, trained together.

    `step` goes segment by segment and holds one segment's activations only. What a gradient does, by loss:

                          update(gradient)                   returns
        local losses      None                               None: nothing passes a segment's border
        glob, glob+X      None in the last stage, else of    with respect to what was received; None in the first
                          what was handed on
    """

    def __init__(
        self,
        index: int,
        blocks: Sequence[LocalBlock],
        config: TrainConfig,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        steps_per_epoch: int = 1,
    ) -> None:
        self.index, self.blocks, self.config = index, tuple(blocks), config
        self._steps_per_epoch = steps_per_epoch
        self.numerics = self.blocks[0].numerics
        self.device = self.numerics.device
        self.takes, self.gives = (labelled(TensorSpec(shape, self.numerics.dtype)) for shape in (inputs, outputs))
        parameters = [p for block in blocks for _, p in block.named_trainable()]
        self.optimizer = create_optimizer(
            config,
            parameters,
            self.numerics.fused,
            [bias for block in blocks for bias in block.norm_biases()],
            heads=[weight for block in blocks for weight in block.local_head()],
            scores=[weight for block in blocks for weight in block.score_weights()],
        )
        self.optimizer.zero_grad(set_to_none=True)  # what a user, or a measurement, has left in the weights
        self._averages = [block.average for block in blocks if block.average is not None]
        captures = config.capture == "auto" and self.device.type == "cuda"
        self.capture = Capture(blocks, self.optimizer, partial(CudaGraphs, self.device) if captures else None)
        self._targets_of: dict[int, Targets] = {}  # by size of the batch
        scored = [block.index for block in blocks if block.loss is not None]
        self._meters = {kind: Meter(scored, self.device) for kind in ("train", "test")}
        self._training = True
        for block in blocks:
            block.train(True)  # whatever mode a user's own came in
        self._rate: float | None = None  # of the optimizer
        self._step = 0  # of the batch that is trained on

    def forward(self, packet: Packet) -> Packet:
        x = self._enter(packet, training=True)
        self._acting = self._act("forward", packet, x)
        return packet.with_x(self.capture.outside(run_forward(self._acting, x, packet.at.step)))

    def update(self, gradient: Tensor | None = None) -> Tensor | None:
        if gradient is not None:
            gradient = canonical(gradient.to(self.numerics.dtype), self.numerics.channels_last)
        passed = run_update(self._acting, self._targets, gradient)
        self._learn()
        return None if passed is None else self.capture.outside(passed)

    def step(self, packet: Packet) -> Packet:
        x = self._enter(packet, training=True)
        self._acting = self._act("step", packet, x)
        x = run_segments(self._acting, x, packet.at.step, self._targets)
        self._learn()
        return packet.with_x(self.capture.outside(x))

    def _act(self, layout: str, packet: Packet, x: Tensor) -> Sequence[Acting]:
        return self.capture.acting(layout, x, self._targets, full=packet.batch == self.config.batch_size)

    def _learn(self) -> None:
        """What follows the gradients of all blocks."""
        self.capture.learn()
        if self._averages:
            follow(self._averages, share_of_new(self.config.ema, self._step))
        self._count("train", self._acting)

    def evaluate(self, packet: Packet) -> Packet:
        x = self._enter(packet, training=False)
        for block in self.blocks:
            x = block.evaluate(x, self._targets, packet.at.step)
        self._count("test", self.blocks)
        return packet.with_x(x)

    def _enter(self, packet: Packet, *, training: bool) -> Tensor:
        """Set mode and learning rate if they change, and bring the activation into the stage's format."""
        if training != self._training:
            self._training = training
            for block in self.blocks:
                block.train(training)
        if training:
            self._learn_at(self.config.rate(packet.at.epoch, packet.at.step, self._steps_per_epoch))
            self._step = packet.at.step
            for average in self._averages:
                average.begin()
        self._targets = self._of_batch(packet.labels)
        x = packet.x.to(self.device, self.numerics.dtype, non_blocking=True)
        return canonical(x, self.numerics.channels_last)

    def _learn_at(self, rate: float) -> None:
        if rate != self._rate:
            self._rate = rate
            set_learning_rate(rate, self.optimizer)

    def _of_batch(self, labels: Tensor) -> Targets:
        """The targets of a batch: always the same ones for one size, filled again."""
        targets = self._targets_of.get(len(labels))
        if targets is None:
            return self._targets_of.setdefault(len(labels), Targets(labels.to(self.device, copy=True)))
        targets.refill(labels)
        return targets

    def _count(self, kind: str, blocks: Sequence[Acting]) -> None:
        """What all blocks made of the batch, at once."""
        self._meters[kind].add([b.scored for b in blocks if b.scored is not None], self._targets.labels)

    def scores(self, *, reset: bool) -> tuple[Scores, Scores]:
        train, test = (self._meters[kind].read(reset=reset) for kind in ("train", "test"))
        return self._of_all(train), self._of_all(test)

    def check(self, at: Position) -> None:
        meter = self._meters["train"]
        spoilt = meter.first_spoilt()
        if spoilt is not None:
            step = at.step - meter.batches + spoilt[0]
            raise StageFailure(
                f"the loss of {self._called(spoilt[1])} became nan or infinite in epoch {at.epoch}, at step {step} of "
                f"the run; {self._remedy}"
            )
        for block in self.blocks:  # what the last step of a run does to them shows in no loss
            name = block.first_spoilt()
            if name is not None:
                raise StageFailure(
                    f"{name} of {self._called(block.index)} became nan or infinite in epoch {at.epoch}, before "
                    f"step {at.step} of the run; {self._remedy}"
                )

    def _called(self, index: int) -> str:
        name = next(block.name for block in self.blocks if block.index == index)
        return f"block {index} ({name})" if name else f"block {index}"

    @property
    def _remedy(self) -> str:
        rate = self.config.lr if self._rate is None else self._rate
        return f"lower --lr, which is {rate:g} there, or look for numbers in the data that are not finite"

    def _of_all(self, found: Mapping[int, BlockScore]) -> Scores:
        return tuple(found.get(block.index, BlockScore(block.index, None, None)) for block in self.blocks)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state_dict(self) -> dict[str, Tensor]:
        state = {name: tensor for block in self.blocks for name, tensor in block.full_state(self.optimizer).items()}
        counted = {f"{i}.meter.{kind}": t for kind, meter in self._meters.items() for i, t in meter.state().items()}
        return state | counted

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for block in self.blocks:
            block.load_state_dict(state, self.optimizer)
        self.capture.forget()
        train, test = self._meters["train"], self._meters["test"]
        train.load({index: state[f"{index}.meter.train"] for index in train.blocks})
        test.read(reset=True)  # an evaluation in which the state was taken begins anew


def build_stage(
    config: TrainConfig,
    network: Network,
    shapes: Sequence[BlockShape],
    classes: int,
    split: Sequence[int],
    index: int,
    numerics: Numerics,
    steps_per_epoch: int = 1,
) -> Stage:
    """Build stage `index` of a network whose stages have `split` blocks each, and none of the other blocks.

    `steps_per_epoch` matters to learning rates that go on step by step alone.

    Raises ConfigError where the blocks are to be compiled and there is no compiler.
    """
    if config.compile:
        check_compiler(numerics.device)
    own = members(split)[index]
    firsts, lasts = segment_ends(config, shapes)
    blocks = []
    for i in own:
        first, last, output = i in firsts, i in lasts, i == len(network) - 1
        head = network[i].similarity_head
        loss = create_loss(config, i, shapes[i], classes, output=output, segment_end=last, similarity_head=head)
        block = build_block(network[i], config.seed, i)
        local = LocalBlock(
            i,
            block,
            loss,
            config,
            numerics,
            gives=TensorSpec(shapes[i].outputs, numerics.dtype),
            gradient_in=not last,
            gradient_out=not first,
            manners=shapes[i].manners,
            name=network[i].name,
        )
        blocks.append(local)
    return Stage(index, blocks, config, shapes[own[0]].inputs, shapes[own[-1]].outputs, steps_per_epoch)
