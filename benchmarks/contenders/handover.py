"""What a hand-over costs its stage: both stages alone at the same time, then the same stages as a pipeline.

Alone, a stage computes forward and update on synthetic packets, with no queue anywhere; in the pipeline the product's
own worker, queues and control channel are around it. Both do the same work a step, in the same processes, interleaved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.contenders.pipelined import run_stage
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Row, Target, at_least, at_most
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.balance import balance
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.profile import count_costs
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import canonical
from pipeline.network.spec import BlockShape, Network, infer_shapes
from pipeline.network.zoo import named_network

__all__ = [
    "CLASSES",
    "STAGES",
    "Case",
    "ClockedStage",
    "Step",
    "cases",
    "compute_alone",
    "figures_of_stage",
    "measure_cases",
    "of_slowest_alone",
    "plan",
    "synthetic",
]

STAGES = 2
OF_SLOWEST, COST_PERCENT = 0.97, 3.0  # what is wanted
CLASSES, _SHAPE = 10, (3, 32, 32)
_CPU = torch.device("cpu")
_PACKETS = 4  # different ones, so that a stage alone does not find its input in the caches either


@dataclass(frozen=True)
class Case:
    """A network, and how often it is measured.

    Attributes:
        width: of vgg8b.
        batch: samples of a packet.
        steps: that are timed in a turn, after `warm_up` others.
        rounds: turns alone and as a pipeline.
    """

    width: float
    batch: int
    steps: int
    rounds: int
    warm_up: int = 4

    @property
    def label(self) -> str:
        """For rows."""
        return f"vgg8b x {self.width:g}, batch {self.batch}"

    @property
    def config(self) -> TrainConfig:
        """How both stages learn."""
        return TrainConfig(loss="pred", decoder_dim=2048, batch_size=self.batch, device="cpu")


@dataclass(frozen=True)
class Step:
    """What one step took a process, on average over the timed steps of a turn, in seconds.

    Attributes:
        seconds: from one end to the next.
        busy_s: in the stage's computations, by the wall clock.
        between_s: that the stage's thread worked between the computations: the hand-over. Waiting is no work.
        cpu_s: processor time of all threads of the process.
    """

    seconds: float
    busy_s: float
    between_s: float
    cpu_s: float


_Turns = Sequence[tuple[Step, Step]]  # round by round: alone, in the pipeline


_CASES = {
    False: (Case(1.0, 32, steps=6, rounds=11), Case(0.25, 128, steps=16, rounds=7)),
    True: (Case(0.25, 128, steps=8, rounds=3),),
}


def cases(quick: bool) -> tuple[Case, ...]:
    """The networks that are measured; the narrow one spends most on its hand-overs."""
    return _CASES[quick]


def measure_cases(crew: Crew, quick: bool) -> tuple[list[Row], list[Target]]:
    """Rows and targets of all networks."""
    rows: list[Row] = []
    targets: list[Target] = []
    for case in shown(cases(quick), "networks"):
        turns = crew.call(take_turns, case)
        rows += _rows(case, turns)
        targets += _targets(case, turns)
    return rows, targets


class ClockedStage(Stage):
    """A stage that notes after every step how long it has computed so far, and what its thread did in between."""

    def __init__(self, stage: Stage) -> None:
        inputs, outputs = (signature["x"].shape for signature in (stage.takes, stage.gives))
        super().__init__(stage.index, stage.blocks, stage.config, inputs, outputs)
        self.start_clocks()

    def start_clocks(self) -> None:
        """Forget what was noted."""
        self._busy_s = self._busy_thread_s = 0.0
        self._notes: list[tuple[float, float, float, float]] = []

    def forward(self, packet: Packet) -> Packet:
        """As any stage's, timed."""
        start = time.perf_counter(), time.thread_time()
        handed_on = super().forward(packet)
        self._add(*start)
        return handed_on

    def update(self, gradient: Tensor | None = None) -> Tensor | None:
        """As any stage's, timed; it ends the step."""
        start = time.perf_counter(), time.thread_time()
        passed = super().update(gradient)
        self._add(*start)
        self._note()
        return passed

    def step(self, packet: Packet) -> Packet:
        """As any stage's, timed; these blocks are not chained, so that neither of the above is called."""
        start = time.perf_counter(), time.thread_time()
        handed_on = super().step(packet)
        self._add(*start)
        self._note()
        return handed_on

    def _add(self, start_s: float, thread_start_s: float) -> None:
        self._busy_s += time.perf_counter() - start_s
        self._busy_thread_s += time.thread_time() - thread_start_s

    def _note(self) -> None:
        between_s = time.thread_time() - self._busy_thread_s
        self._notes.append((time.perf_counter(), self._busy_s, between_s, time.process_time()))

    def average(self, count: int) -> Step:
        """Of the last `count` steps."""
        first, last = self._notes[-count - 1], self._notes[-1]
        return Step(*((after - before) / count for before, after in zip(first, last, strict=True)))


def plan(config: TrainConfig, width: float) -> tuple[Network, list[BlockShape], tuple[int, ...]]:
    """vgg8b, its shapes and its cut into two stages."""
    network = named_network(ModelConfig(model="vgg8b", width=width), _SHAPE, CLASSES, config.loss)
    shapes = infer_shapes(network, _SHAPE)
    return network, shapes, balance(count_costs(config, network, shapes, CLASSES), STAGES)


def take_turns(member: Member, case: Case) -> list[tuple[Step, Step]]:
    """What this process sees of all rounds, the first of which is for warming up."""
    network, shapes, split = plan(case.config, case.width)
    numerics = Numerics(_CPU)
    stage = ClockedStage(build_stage(case.config, network, shapes, CLASSES, split, member.rank, numerics))
    packets = synthetic(case.batch, stage.takes["x"].shape)
    rounds = []
    for _ in range(case.rounds + 1):
        alone = _alone(stage, case, packets)
        rounds.append((alone, _pipelined(stage, case, packets)))
    return rounds[1:]


def synthetic(batch: int, shape: Sequence[int]) -> list[Packet]:
    """Packets of noise, such as a nonlinearity would leave it."""
    generator = torch.Generator().manual_seed(0)
    packets = []
    for index in range(_PACKETS):
        activation = canonical(torch.randn(batch, *shape, generator=generator).relu())
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        packets.append(Packet.of(Kind.TRAIN, Position(1, index), activation, labels))
    return packets


def _train(case: Case, packets: Sequence[Packet]) -> Iterator[Packet]:
    """The packets of one turn."""
    for step in range(case.warm_up + case.steps):
        yield packets[step % len(packets)]


def compute_alone(stage: Stage, packet: Packet) -> None:
    """A step as the worker would make it, which hands on nothing."""
    if stage.index == STAGES - 1:
        stage.step(packet)
    else:
        stage.forward(packet)
        stage.update()


def _alone(stage: ClockedStage, case: Case, packets: Sequence[Packet]) -> Step:
    """Steps alone, all processes at once."""
    stage.start_clocks()
    dist.barrier()
    for packet in _train(case, packets):
        compute_alone(stage, packet)
    return stage.average(case.steps)


def _pipelined(stage: ClockedStage, case: Case, packets: Sequence[Packet]) -> Step:
    """The same packets through the pipeline."""
    stage.start_clocks()
    run_stage(stage, STAGES, case.config, [*_train(case, packets), Packet(Kind.STOP, Position(1, case.steps))])
    return stage.average(case.steps)


def _rows(case: Case, turns: Sequence[_Turns]) -> list[Row]:
    """One of every stage, and one of the pipeline."""
    settings = _settings(case)
    stages = [
        Row(f"{case.label}: stage {index}", {**settings, "stage": index}, figures_of_stage(mine))
        for index, mine in enumerate(turns)
    ]
    rates = [case.batch / pipelined.seconds for _, pipelined in turns[-1]]
    whole = {"samples_per_second": summarize(rates), "of_slowest_stage_alone": of_slowest_alone(turns)}
    return [*stages, Row(f"{case.label}: pipeline", settings, whole)]


def _settings(case: Case) -> Mapping[str, Any]:
    _, shapes, split = plan(case.config, case.width)
    handed_on = shapes[split[0] - 1].outputs
    return {
        "loss": case.config.loss,
        "split": list(split),
        "payload_bytes": 4 * case.batch * math.prod(handed_on),
        "queue_depth": case.config.queue_depth,
        "steps_per_turn": case.steps,
    }


def figures_of_stage(turns: _Turns) -> dict[str, Figure]:
    """The figures of one stage over its rounds."""
    alone, pipelined = [turn[0] for turn in turns], [turn[1] for turn in turns]
    return {
        "step_alone_milliseconds": summarize([1e3 * step.seconds for step in alone]),
        "busy_milliseconds": summarize([1e3 * step.busy_s for step in pipelined]),
        "between_computations_microseconds": summarize([1e6 * step.between_s for step in pipelined]),
        "cpu_alone_milliseconds": summarize([1e3 * step.cpu_s for step in alone]),
        "extra_cpu_percent": summarize([100.0 * (step.cpu_s / one.cpu_s - 1.0) for one, step in turns]),
        "hand_over_percent": _hand_over_percent(turns),
    }


def _hand_over_percent(turns: _Turns) -> Figure:
    """Work between the computations, and what these slow down by, of the step alone; noise may make it negative."""
    return summarize([100.0 * ((step.busy_s + step.between_s) / alone.seconds - 1.0) for alone, step in turns])


def of_slowest_alone(turns: Sequence[_Turns]) -> Figure:
    """Rate of the pipeline, on its last stage's clock, over that of its slowest stage alone, round by round."""
    slowest = [max(alone.seconds for alone, _ in stages) for stages in zip(*turns, strict=True)]
    return ratio(slowest, [pipelined.seconds for _, pipelined in turns[-1]])


def _targets(case: Case, turns: Sequence[_Turns]) -> list[Target]:
    costs = [
        at_most(
            f"3. {case.label}: percent of its step that the hand-over costs stage {index}",
            COST_PERCENT,
            _hand_over_percent(mine),
        )
        for index, mine in enumerate(turns)
    ]
    name = f"3. {case.label}: throughput of the pipeline to its slowest stage alone"
    return [at_least(name, OF_SLOWEST, of_slowest_alone(turns)), *costs]
