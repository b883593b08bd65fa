"""How the time of a training step grows with blocks, width, batch and stages, one process on one core.

A power of each size is fitted, seconds = c * size ** exponent, over the larger half of the points, where constant
costs count least: 1 is linear; width, which multiplies the channels on both sides of a convolution, should tend to 2.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.nn import functional as F

from benchmarks.contenders.common import CHEAP_HEAD, build_blocks
from benchmarks.contenders.pipelined import Given
from benchmarks.harness.crew import Crew, Member, cores
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.pictures import Curves
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row, Target, at_most
from pipeline.config.environment import Environment
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.balance import balance
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import create_optimizer
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.profile import count_costs
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import canonical
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import Network, infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.session import Session
from pipeline.runtime.topology import Topology
from pipeline.runtime.world import World

__all__ = ["Extent", "Method", "Point", "fit_power", "run"]

CLASSES = 10
_CHANNELS, _SIDE = 32, 16  # of the stack of equal blocks
_WARM_UP = 2  # steps


@dataclass(frozen=True)
class Point:
    """A size of the problem. `blocks` 0 is the named network vgg8b on 32x32 images, else a stack of equal blocks."""

    blocks: int = 0
    width: float = 0.25
    batch: int = 32
    stages: int = 1


@dataclass(frozen=True)
class Method:
    """A way to train."""

    loss: str
    head: str = "conv"

    @property
    def label(self) -> str:
        """For tables."""
        name = "backprop" if self.loss == "glob" else self.loss
        return name + ("" if self.head == "conv" else f", head {self.head}")


METHODS = (Method("glob"), Method("pred"), Method("predsim"), Method("predsim", CHEAP_HEAD))


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        axes: name and points of each.
        repetitions: of every point, interleaved.
        repetition_s: a repetition is as many steps as fill it, at least one.
    """

    axes: Mapping[str, Sequence[Point]]
    repetitions: int
    repetition_s: float


_FULL = Extent(
    {
        "blocks": [Point(blocks=blocks) for blocks in (2, 4, 8, 16, 32)],
        "width": [Point(width=width, batch=8) for width in (0.125, 0.25, 0.5, 0.75, 1.0)],
        "batch": [Point(batch=batch) for batch in (8, 16, 32, 64, 128)],
        "stages": [Point(blocks=15, stages=stages) for stages in (1, 2, 4, 8)],
    },
    repetitions=11,
    repetition_s=0.05,
)
_QUICK = Extent(
    {
        "blocks": [Point(blocks=blocks, batch=16) for blocks in (2, 4, 8, 16)],
        "width": [Point(width=width, batch=8) for width in (0.125, 0.25, 0.5)],
        "batch": [Point(width=0.125, batch=batch) for batch in (16, 32, 64, 128)],
        "stages": [Point(blocks=7, batch=16, stages=stages) for stages in (1, 2, 4, 8)],
    },
    repetitions=5,
    repetition_s=0.03,
)
STAGES_COST = 1.02
"""What stages in one process may cost at the most, of the time of one stage."""


def run(quick: bool) -> Result:
    """Time every method along every axis, all sizes and methods of an axis interleaved."""
    chosen = _QUICK if quick else _FULL
    with Crew(1, available=cores()[:1]) as crew:
        times = {axis: crew.call(measure, axis, chosen)[0] for axis in shown(list(chosen.axes), "axes")}
    rows = [row for axis, found in times.items() for row in _rows(axis, found, chosen.axes[axis])]
    return Result(rows, [_target(times["stages"], chosen.axes["stages"])], _picture(times))


@dataclass(frozen=True)
class Times:
    """Seconds of a training step in every repetition, and of setting up what is trained."""

    step: Sequence[float]
    setup: float


Found = Mapping[tuple[Method, Point], Times]


def _methods(axis: str) -> Sequence[Method]:
    """Backprop has no stages in one process: they are a matter of local learning alone."""
    return METHODS[1:] if axis == "stages" else METHODS


def size(axis: str, point: Point) -> float:
    """How large a point is along an axis."""
    return {"blocks": point.blocks, "width": point.width, "batch": point.batch, "stages": point.stages}[axis]


def fit_power(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Exponent of the power of size that fits seconds best, and the greatest relative deviation from it.

    Least squares on logarithms over the larger half of the points, three of them at least.
    """
    points = sorted(zip(sizes, seconds, strict=True))
    upper = np.log(np.array(points[-max(3, math.ceil(len(points) / 2)) :]))
    exponent, offset = np.polyfit(upper[:, 0], upper[:, 1], 1)
    deviation = np.exp(np.abs(upper[:, 1] - exponent * upper[:, 0] - offset).max()) - 1
    return float(exponent), float(deviation)


def _rows(axis: str, found: Found, points: Sequence[Point]) -> list[Row]:
    """A row for every point, and one for the fit of every method; stages are held against one stage."""
    rows = [_point_row(axis, method, point, found) for method, point in found]
    if axis == "stages":
        return rows
    return rows + [_fit_row(axis, method, points, found) for method in _methods(axis)]


def _point_row(axis: str, method: Method, point: Point, found: Found) -> Row:
    times = found[method, point]
    figures = {
        "seconds": summarize(times.step),
        "samples_per_second": summarize([point.batch / each for each in times.step]),
        "setup_seconds": summarize([times.setup]),
    }
    if axis == "stages":
        figures["of_one_stage"] = _of_one_stage(method, point, found)
    settings = {"axis": axis, "method": method.label, "network": "stack" if point.blocks else "vgg8b", **asdict(point)}
    return Row(f"{axis} {size(axis, point):g}: {method.label}", settings, figures)


def _of_one_stage(method: Method, point: Point, found: Found) -> Figure:
    return ratio(found[method, point].step, found[method, replace(point, stages=1)].step)


def _fit_row(axis: str, method: Method, points: Sequence[Point], found: Found) -> Row:
    """One fit for every repetition."""
    sizes = [size(axis, point) for point in points]
    rounds = zip(*(found[method, point].step for point in points), strict=True)
    exponents, deviations = zip(*(fit_power(sizes, seconds) for seconds in rounds), strict=True)
    figures = {"exponent": summarize(exponents), "largest_deviation": summarize(deviations)}
    return Row(f"{axis}, fitted: {method.label}", {"axis": axis, "method": method.label, "fitted": True}, figures)


def _target(found: Found, points: Sequence[Point]) -> Target:
    """Of the most stages, with the default loss."""
    most = _of_one_stage(Method("predsim"), points[-1], found)
    return at_most(f"time of {points[-1].stages} stages in one process, of one stage's", STAGES_COST, most)


def _picture(times: Mapping[str, Found]) -> Curves:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {axis: {} for axis in times}
    for axis, found in times.items():
        for (method, point), each in found.items():
            place = (size(axis, point), statistics.median(each.step))
            panels[axis].setdefault(method.label, []).append(place)
    return Curves("as the title says", "seconds of a step", panels, logarithmic=True)


def measure(member: Member, axis: str, chosen: Extent) -> dict[tuple[Method, Point], Times]:
    """Time all points of an axis in this process of a crew, the alternatives interleaved."""
    trains: dict[tuple[Method, Point], Callable[[int], None]] = {}
    setups, counts = {}, {}
    for point in chosen.axes[axis]:
        for method in _methods(axis):
            key, start = (method, point), time.perf_counter()
            trains[key] = prepare(method, point)
            setups[key] = time.perf_counter() - start
            trains[key](_WARM_UP)
            counts[key] = max(1, math.ceil(chosen.repetition_s / _seconds(trains[key], 1)))
    rounds = [{key: _seconds(trains[key], counts[key]) for key in trains} for _ in range(chosen.repetitions)]
    return {key: Times([each[key] for each in rounds], setups[key]) for key in trains}


def _seconds(train: Callable[[int], None], steps: int) -> float:
    """Of one of several steps."""
    start = time.perf_counter()
    train(steps)
    return (time.perf_counter() - start) / steps


def prepare(method: Method, point: Point) -> Callable[[int], None]:
    """Set up a network and a batch; what comes back trains so many steps on it."""
    config = TrainConfig(loss=method.loss, similarity_head=method.head, batch_size=point.batch)
    network, shape = _network(method, point)
    generator = torch.Generator().manual_seed(0)
    x = canonical(torch.randn(point.batch, *shape, generator=generator))
    labels = torch.randint(CLASSES, (point.batch,), generator=generator)
    if method.loss == "glob":
        return _backprop(config, network, x, labels)
    return _local(config, network, x, labels, point.stages)


def _network(method: Method, point: Point) -> tuple[Network, tuple[int, ...]]:
    if point.blocks == 0:
        shape = (3, 32, 32)
        return named_network(ModelConfig(model="vgg8b", width=point.width), shape, CLASSES, method.loss), shape
    layers: list[nn.Module] = []
    for _ in range(point.blocks):
        convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(_CHANNELS), nn.LeakyReLU(0.01, inplace=True)]
    layers += [nn.Flatten(), nn.Linear(_CHANNELS * _SIDE * _SIDE, CLASSES)]
    return given_network(blocks_from(nn.Sequential(*layers))), (_CHANNELS, _SIDE, _SIDE)


def _backprop(config: TrainConfig, network: Network, x: Tensor, labels: Tensor) -> Callable[[int], None]:
    model = nn.Sequential(*build_blocks(network, config.seed, x.device))
    optimizer = create_optimizer(config, list(model.parameters()), True)

    def train(steps: int) -> None:
        for _ in range(steps):
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def _local(config: TrainConfig, network: Network, x: Tensor, labels: Tensor, count: int) -> Callable[[int], None]:
    """The product's own loop over the stages of one process."""
    shapes = infer_shapes(network, tuple(x.shape[1:]))
    split = balance(count_costs(config, network, shapes, CLASSES), count) if count > 1 else (len(network),)
    numerics = Numerics(x.device)
    stages = [build_stage(config, network, shapes, CLASSES, split, index, numerics) for index in range(count)]
    world = World(Environment(0, 1, 0, 1), config, HashStore())
    links, topology = world.links(x.device), Topology.over(split, 1)

    def train(steps: int) -> None:
        batches = [Packet.of(Kind.TRAIN, Position(1, step), x, labels) for step in range(steps)]
        with Session(stages, topology, config, world.control, links) as session:
            session.run(Given([*batches, Packet(Kind.STOP, Position(1, steps))]))

    return train
