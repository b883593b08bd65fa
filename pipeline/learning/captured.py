"""Training steps that are recorded once and repeated, with the bits of plain ones.

    plain      the first two batches of full size, which make what a step makes only once (optimizer state, plans of
               convolutions); batches of any other size, whenever they come
    recorded   before the third: forward and update of every block, each a graph of its own so that its random numbers
               can be keyed, in the order in which the policy calls them; then the optimizer, unless it cannot be.
               Nothing is executed
    replayed   from the third on

What is recorded reads and leaves its tensors in fixed places:

    batch ─copy─> x │ block 0 │ out = x of block 1 │ block 1 │ out ─copy─> handed on
                  labels and their forms: `Targets`, filled again         gradients: read by the optimizer

A block that cannot be recorded is run plainly among those that are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.errors import first_line
from pipeline.learning.graphs import Graphs, Replay
from pipeline.learning.local_block import LocalBlock
from pipeline.learning.losses import Targets
from pipeline.learning.meter import Scored
from pipeline.learning.optimizer import is_recordable
from pipeline.network.blocks import canonical
from pipeline.seeding import HostGenerators

__all__ = ["Acting", "Capture", "run_forward", "run_segments", "run_update"]

_PLAIN_STEPS = 2

_log = logging.getLogger(__name__)


class Acting(Protocol):
    """What a training step asks of a block."""

    @property
    def gradient_in(self) -> bool:
        """Whether a gradient arrives from the next block."""

    @property
    def scored(self) -> Scored | None:
        """What the last `update` made of its batch."""

    def forward(self, x: Tensor, step: int) -> Tensor:
        """What is handed on."""

    def update(self, targets: Targets, gradient: Tensor | None = None) -> Tensor | None:
        """Gradients into the parameters; that of the input is returned where the block before wants it."""


def run_forward(blocks: Sequence[Acting], x: Tensor, step: int) -> Tensor:
    """Forward of all blocks."""
    for block in blocks:
        x = block.forward(x, step)
    return x


def run_update(blocks: Sequence[Acting], targets: Targets, gradient: Tensor | None) -> Tensor | None:
    """Update of all blocks, the last one first."""
    for block in reversed(blocks):
        gradient = block.update(targets, gradient)
    return gradient


def run_segments(blocks: Sequence[Acting], x: Tensor, step: int, targets: Targets) -> Tensor:
    """Forward and update, segment by segment."""
    segment: list[Acting] = []
    for block in blocks:
        x = block.forward(x, step)
        segment.append(block)
        if not block.gradient_in:
            run_update(segment, targets, None)
            segment.clear()
    return x


class _NotRecorded(Exception):
    """A block could not be recorded."""

    def __init__(self, block: LocalBlock, reason: str) -> None:
        super().__init__(reason)
        self.block = block


class _Recorded:
    """A block whose forward and update were recorded by its first calls and are repeated by all others."""

    def __init__(self, block: LocalBlock, graphs: Graphs) -> None:
        self.block, self.gradient_in = block, block.gradient_in
        self.scored: Scored | None = None
        self._graphs = graphs
        self._apart = block.numerics.device.type != "cpu"  # torch's generator on the host is not the block's
        self._forward: Replay | None = None
        self._update: Replay | None = None
        self._gradient: Tensor | None = None
        self._gradients: list[Tensor | None] = []

    def forward(self, x: Tensor, step: int) -> Tensor:
        if self._forward is None:
            self._x = x
            self._forward = self._record(self._run_forward)
            return self._out
        if x is not self._x:
            self._x.copy_(x)
        self.block.seed(step)
        self._forward()
        return self._out

    def update(self, targets: Targets, gradient: Tensor | None = None) -> Tensor | None:
        if self._update is None:
            self._targets, self._gradient = targets, gradient
            self._update = self._record(self._run_update)
            self.scored = self.block.scored
            return self._passed
        assert targets is self._targets
        if self._gradient is not None and gradient is not None and gradient is not self._gradient:
            self._gradient.copy_(gradient)
        self.block.seed_backward()
        self._update()
        return self._passed

    def attach(self) -> None:
        """Show the gradients to an optimizer that is run plainly."""
        for parameter, found in zip(self._parameters(), self._gradients, strict=True):
            parameter.grad = found

    def _run_forward(self) -> None:
        self._out = self.block.compute(self._x)

    def _run_update(self) -> None:
        self._passed = self.block.learn(self._targets, self._gradient)
        self._gradients = [parameter.grad for parameter in self._parameters()]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for _, parameter in self.block.named_trainable()]

    def _record(self, work: Callable[[], None]) -> Replay:
        """Raises _NotRecorded."""
        before, spoilt = HostGenerators.now(of_torch=self._apart), ""
        try:
            replay = self._graphs.record(work)
        except Exception as error:  # dropped here: its traceback keeps graphs of autograd that belong to the recording
            spoilt = first_line(error)
        if not spoilt and HostGenerators.now(of_torch=self._apart) != before:
            spoilt = "it draws random numbers on the host, which a graph would repeat"
        if spoilt:
            before.restore()
            raise _NotRecorded(self.block, spoilt)
        return replay


@dataclass(frozen=True)
class _Steps:
    """What a step runs: its blocks, and its optimizer where that has been recorded."""

    blocks: Sequence[Acting]
    learn: Replay | None = None


class _Absent:
    """Stands for a block that is run plainly, while the others are recorded: it gives tensors of the right shapes."""

    def __init__(self, block: LocalBlock, batch: int) -> None:
        self.block, self.gradient_in, self.scored, self._batch = block, block.gradient_in, block.scored, batch

    def forward(self, x: Tensor, step: int) -> Tensor:
        self._x = x
        return _empty_out(self.block, self._batch)

    def update(self, targets: Targets, gradient: Tensor | None = None) -> Tensor | None:
        return torch.empty_like(self._x) if self.block.gradient_out else None


class Capture:
    """What a stage's training steps are made of: plain blocks at first, recorded ones later.

    Args:
        blocks: of the stage.
        optimizer: over all their parameters.
        graphs: makes a new recorder; None never records.

    Attributes:
        plain: blocks that cannot be recorded, and why.
    """

    def __init__(
        self, blocks: Sequence[LocalBlock], optimizer: torch.optim.Optimizer, graphs: Callable[[], Graphs] | None
    ) -> None:
        self.blocks, self.optimizer, self._graphs = tuple(blocks), optimizer, graphs
        self.plain: dict[int, str] = {}
        self.forget()

    def forget(self) -> None:
        """Start over with plain steps: state has been loaded."""
        self._seen: Counter[str] = Counter()
        self._recorded: dict[str, _Steps] = {}
        self._now = _Steps(self.blocks)

    @property
    def warm_up(self) -> int:
        """Steps that cost more than those that follow."""
        return 1 if self._graphs is None else _PLAIN_STEPS + 1

    def acting(self, layout: str, x: Tensor, targets: Targets, *, full: bool) -> Sequence[Acting]:
        """The blocks to run the next training step with.

        Args:
            layout: `step`, segment by segment, or `forward`, all of it before any update.
            x: that the step begins with.
            targets: of the batch; with `full` they are always the same, filled again.
            full: whether the batch has the configured size; only such steps are recorded.
        """
        self._now = _Steps(self.blocks)
        if full and self._graphs is not None:
            self._seen[layout] += 1
            if self._seen[layout] == _PLAIN_STEPS + 1:
                self._recorded[layout] = self._record(self._graphs, layout, x, targets)
            self._now = self._recorded.get(layout, self._now)
        return self._now.blocks

    def learn(self) -> None:
        """The optimizer's part of the step."""
        if self._now.learn is not None:
            self._now.learn()
            return
        for block in self._now.blocks:
            if isinstance(block, _Recorded):
                block.attach()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def outside(self, x: Tensor) -> Tensor:
        """What leaves the stage: a copy where the next step will overwrite it."""
        return x if self._now.blocks is self.blocks else x.clone()

    def _record(self, graphs: Callable[[], Graphs], layout: str, x: Tensor, targets: Targets) -> _Steps:
        """Everything that can be recorded; starts again without a block that turns out not to be one of that."""
        while len(self.plain) < len(self.blocks):
            recorder = graphs()
            acting = [_Absent(b, len(x)) if b.index in self.plain else _Recorded(b, recorder) for b in self.blocks]
            try:
                self._rehearse(layout, acting, x, targets)
                whole = not self.plain and is_recordable(self.optimizer)
                learn = recorder.record(lambda: self.optimizer.step()) if whole else None
            except _NotRecorded as error:
                self.plain[error.block.index] = str(error)
                _log.warning("block %d runs plainly, not captured: %s", error.block.index, error)
                continue
            finally:
                self._clear()
            return _Steps([one.block if isinstance(one, _Absent) else one for one in acting], learn)
        return _Steps(self.blocks)

    def _rehearse(self, layout: str, acting: Sequence[Acting], x: Tensor, targets: Targets) -> None:
        """Call everything once in the order of the layout: that records it."""
        fixed = torch.empty_like(x)
        if layout == "step":
            run_segments(acting, fixed, 0, targets)
            return
        run_forward(acting, fixed, 0)
        last = self.blocks[-1]
        run_update(acting, targets, _empty_out(last, len(x)) if last.gradient_in else None)

    def _clear(self) -> None:
        """Leave nothing of a recording in the blocks."""
        for block in self.blocks:
            block.release()
        self.optimizer.zero_grad(set_to_none=True)


def _empty_out(block: LocalBlock, batch: int) -> Tensor:
    """Memory for what a block hands on, or for the gradient of that."""
    return canonical(block.gives.empty(batch, block.numerics.device), block.numerics.channels_last)
