"""What handing on costs two processes on GPUs: their steps alone at the same time, then as a pipeline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from benchmarks.contenders.handover import CLASSES, STAGES, compute_alone, plan, synthetic
from benchmarks.contenders.pipelined import run_stage
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import ratio, summarize
from benchmarks.harness.report import Row, Target
from pipeline.config.schema import TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet
from pipeline.learning.stage import Stage, build_stage
from pipeline.runtime.world import reproducible

__all__ = ["Turn", "measure"]

_BATCH = 128
_WARM_UP = 6  # steps of every turn; capturing is over by then


@dataclass(frozen=True)
class Turn:
    """Milliseconds of a step of one process: alone, as a pipeline, and what it sends, copied to the host and back."""

    alone: float
    pipelined: float
    copied: float


def measure(quick: bool) -> tuple[list[Row], list[Target]]:
    """A row for each stage of vgg8b with `pred` in two processes, on GPUs of their own where there are two."""
    config = TrainConfig(loss="pred", decoder_dim=2048, batch_size=_BATCH, precision="bf16")
    with Crew(STAGES) as crew:
        turns = crew.call(_turns, config, 3 if quick else 7, 20 if quick else 60)
    gpus = min(STAGES, torch.cuda.device_count())
    return [_row(index, mine, config, gpus) for index, mine in enumerate(turns)], []


def _turns(member: Member, config: TrainConfig, rounds: int, steps: int) -> list[Turn]:
    """What this process sees of all rounds after the first."""
    network, shapes, split = plan(config, 1.0)
    device = torch.device("cuda", member.rank % torch.cuda.device_count())
    with reproducible(config, member.threads, device):
        stage = build_stage(config, network, shapes, CLASSES, split, member.rank, Numerics(device, config.precision))
        (packet, *_), takes = synthetic(_BATCH, stage.takes["x"].shape), stage.takes["x"]
        packet = packet.with_x(packet.x.to(device, takes.dtype))
        found = [_turn(stage, packet, config, steps) for _ in range(rounds + 1)]
    return found[1:]


def _turn(stage: Stage, packet: Packet, config: TrainConfig, steps: int) -> Turn:
    dist.barrier()
    for _ in range(_WARM_UP):
        compute_alone(stage, packet)
    alone = _milliseconds(lambda: compute_alone(stage, packet), stage, steps)
    clock = _Clock(stage, steps)
    run_stage(clock, STAGES, config, clock.packets(packet))
    x = stage.forward(packet).x if stage.index < STAGES - 1 else packet.x
    if stage.index < STAGES - 1:
        stage.update()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    copied = _milliseconds(lambda: x.copy_(host.copy_(x, non_blocking=True), non_blocking=True), stage, steps)
    return Turn(alone, clock.milliseconds, copied)


def _milliseconds(act: Callable[[], object], stage: Stage, steps: int) -> float:
    stage.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        act()
    stage.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps


class _Clock(Stage):
    """A stage that times the steps after the first ones of a run, from one idle device to the next."""

    def __init__(self, stage: Stage, steps: int) -> None:
        self.__dict__.update(vars(stage))
        self._steps, self._done, self._start, self.milliseconds = steps, 0, 0.0, math.nan

    def packets(self, packet: Packet) -> Iterator[Packet]:
        """Those of a run."""
        for _ in range(_WARM_UP + self._steps):
            yield packet
        yield Packet(Kind.STOP, packet.at)

    def forward(self, packet: Packet) -> Packet:
        """As any stage's; looks at the clock first."""
        self._look()
        return super().forward(packet)

    def step(self, packet: Packet) -> Packet:
        """As any stage's; looks at the clock first."""
        self._look()
        handed_on = super().step(packet)
        self._end()
        return handed_on

    def update(self, gradient: torch.Tensor | None = None) -> torch.Tensor | None:
        """As any stage's."""
        passed = super().update(gradient)
        self._end()
        return passed

    def _look(self) -> None:
        if self._done == _WARM_UP:
            self.synchronize()
            self._start = time.perf_counter()

    def _end(self) -> None:
        self._done += 1
        if self._done == _WARM_UP + self._steps:
            self.synchronize()
            self.milliseconds = 1e3 * (time.perf_counter() - self._start) / self._steps


def _row(index: int, turns: Sequence[Turn], config: TrainConfig, gpus: int) -> Row:
    _, shapes, split = plan(config, 1.0)
    payload = 2 * _BATCH * math.prod(shapes[split[0] - 1].outputs)
    settings = {"gpus": gpus, "split": list(split), "payload_bytes": payload, "precision": config.precision}
    alone, pipelined = [turn.alone for turn in turns], [turn.pipelined for turn in turns]
    figures = {
        "alone_milliseconds": summarize(alone),
        "pipelined_milliseconds": summarize(pipelined),
        "pipelined_over_alone": ratio(pipelined, alone),
        "copy_milliseconds": summarize([turn.copied for turn in turns]),
    }
    return Row(f"hand-over: stage {index}", settings, figures)
