"""The steps of one process: milliseconds, launches, kernels and memory of each method, plain and captured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.contenders.backprop import backprop_step
from benchmarks.contenders.common import CHEAP_HEAD, Mixed, build_blocks
from benchmarks.gpu.kernels import Kernels, Timer, kernels_of, peak_memory
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import ratio, summarize
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Row, Target, at_most
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import canonical
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.world import reproducible

__all__ = ["Contender", "Seen", "contenders", "measure", "rows_and_targets"]

_SHAPE, _CLASSES, _BATCH = (3, 32, 32), 10, 128
_SHOWN = 10  # kernels of a row
_WARM_UP = 15  # steps; capturing is over by then
_PRECISIONS = ("fp32", "bf16")
_LOSSES: Mapping[str, Mapping[str, Any]] = {
    "backprop": {"loss": "glob"},
    "pred": {"loss": "pred"},
    "predsim": {"loss": "predsim"},
    "predsim, cheap head": {"loss": "predsim", "similarity_head": CHEAP_HEAD},
}
_WANTED = {"pred": 0.80, "predsim, cheap head": 1.0, "predsim": 2.0}  # of captured backprop's time
_LAUNCHES = {"pred": 200, "predsim": 300}  # of a plain step in fp32
_PRED_OF_PLAIN, _OVER_KERNELS, _OVER_MEMORY = 0.75, 1.05, 1.1


@dataclass(frozen=True)
class Contender:
    """A way to make a step of vgg8b on 32x32x3."""

    method: str
    precision: str
    form: str  # plain, captured, or compiled: both

    @property
    def label(self) -> str:
        """For rows."""
        return f"{self.method}, {self.precision}, {self.form}"

    @property
    def config(self) -> TrainConfig:
        """How it learns."""
        capture, batch = "off" if self.form == "plain" else "auto", _BATCH
        config = TrainConfig(batch_size=batch, decoder_dim=2048, precision=self.precision, capture=capture)
        return replace(config, compile=self.form == "compiled", beta=None, **_LOSSES[self.method])


@dataclass(frozen=True)
class Seen:
    """What was measured of one of them."""

    milliseconds: tuple[float, ...]
    kernels: Kernels
    megabytes: float


def contenders(*, compiled: bool) -> list[Contender]:
    """All of them; compilation takes minutes and is measured only when it is asked for."""
    forms = ("captured", "compiled") if compiled else ("plain", "captured")
    return [Contender(method, precision, form) for precision in _PRECISIONS for method in _LOSSES for form in forms]


def measure(quick: bool, *, compiled: bool) -> tuple[list[Row], list[Target]]:
    """Rows and targets, from a process of its own."""
    every = contenders(compiled=compiled)
    if quick and compiled:  # minutes for each
        every = [one for one in every if one.precision == "fp32" and one.method != "predsim"]
    memory = {contender: _memory_of(contender) for contender in shown(every, "steps, their memory")}
    with Crew(1) as crew:
        (seen,) = crew.call(_measure, memory, 3 if quick else 5, 10 if quick else 40)
    return rows_and_targets(seen)


def _measure(member: Member, memory: Mapping[Contender, float], rounds: int, steps: int) -> dict[Contender, Seen]:
    """Of one precision after the other: the time of all, interleaved, then their kernels."""
    device = torch.device("cuda", 0)
    found: dict[Contender, Seen] = {}
    for precision in dict.fromkeys(one.precision for one in memory):
        mine = [contender for contender in memory if contender.precision == precision]
        with reproducible(mine[0].config, member.threads, device):
            made = {contender: _warm(step_of(contender, device)) for contender in mine}
            timer, times = Timer(device), {contender: list[float]() for contender in mine}
            for contender in shown(mine * rounds, f"rounds of steps, {precision}"):
                made[contender]()
                times[contender].append(timer(made[contender], steps))
            for contender in mine:
                kernels = kernels_of(made[contender], device)
                found[contender] = Seen(tuple(times[contender]), kernels, memory[contender])
            made.clear()
        gc.collect()
        torch.cuda.empty_cache()
    return found


def _warm(step: Callable[[], object]) -> Callable[[], object]:
    for _ in range(_WARM_UP):
        step()
    return step


def _memory_of(contender: Contender) -> float:
    """Megabytes, in a process where nothing else was before."""
    with Crew(1) as crew:
        return crew.call(_megabytes, contender)[0]


def _megabytes(member: Member, contender: Contender) -> float:
    device = torch.device("cuda", 0)
    with reproducible(contender.config, member.threads, device):
        return peak_memory(_warm(step_of(contender, device)), device)


def step_of(contender: Contender, device: torch.device) -> Callable[[], object]:
    """A step on one batch that lies on the device."""
    config = contender.config
    network = named_network(ModelConfig(model="vgg8b"), _SHAPE, _CLASSES, config.loss)
    generator = torch.Generator().manual_seed(0)
    x = canonical(torch.randn(config.batch_size, *_SHAPE, generator=generator).to(device))
    labels = torch.randint(_CLASSES, (config.batch_size,), generator=generator).to(device)
    if contender.method == "backprop":
        model = Mixed(build_blocks(network, config.seed, device), config, device)
        step, _ = backprop_step(config, model, device)
        return partial(step, x, labels)
    numerics = Numerics(device, config.precision)
    stage = build_stage(config, network, infer_shapes(network, _SHAPE), _CLASSES, [len(network)], 0, numerics)
    return partial(stage.step, Packet.of(Kind.TRAIN, Position(), x, labels))


def rows_and_targets(seen: Mapping[Contender, Seen]) -> tuple[list[Row], list[Target]]:
    """What the experiment reports of them."""
    by_label = {contender.label: one for contender, one in seen.items()}
    return [_row(contender, one, by_label) for contender, one in seen.items()], _targets(seen, by_label)


def _row(contender: Contender, seen: Seen, by_label: Mapping[str, Seen]) -> Row:
    rivals = {f"of_{form}_backprop": f"backprop, {contender.precision}, {form}" for form in ("plain", "captured")}
    ratios = {
        name: ratio(seen.milliseconds, by_label[label].milliseconds)
        for name, label in rivals.items()
        if label in by_label
    }
    figures = {
        "milliseconds": summarize(seen.milliseconds),
        "kernel_milliseconds": summarize([seen.kernels.milliseconds]),
        "launches": summarize([seen.kernels.launches]),
        "megabytes": summarize([seen.megabytes]),
        **ratios,
    }
    top = [
        {"name": one.name, "launches": one.launches, "microseconds": round(one.microseconds, 1)}
        for one in seen.kernels.kernels[:_SHOWN]
    ]
    settings = {"model": "vgg8b", "batch": _BATCH, "precision": contender.precision, "form": contender.form}
    return Row(contender.label, {**settings, "kernels": top}, figures)


def _targets(seen: Mapping[Contender, Seen], by_label: Mapping[str, Seen]) -> list[Target]:
    targets = []
    for contender, one in seen.items():
        method, precision = contender.method, contender.precision
        rival = by_label.get(f"backprop, {precision}, {contender.form}")
        if contender.form == "plain":
            if precision == "fp32" and method in _LAUNCHES:
                launches = summarize([one.kernels.launches])
                targets.append(at_most(f"launches of a plain step, {method}", _LAUNCHES[method], launches))
            continue
        if method in _WANTED and rival is not None:
            of_rival = ratio(one.milliseconds, rival.milliseconds)
            name = f"time of {contender.label} over backprop's, as {contender.form}"
            targets.append(at_most(name, _WANTED[method], of_rival))
        plainest = by_label.get(f"backprop, {precision}, plain")
        if method == "pred" and plainest is not None:
            of_plain = ratio(one.milliseconds, plainest.milliseconds)
            targets.append(at_most(f"time of {contender.label} over plain backprop's", _PRED_OF_PLAIN, of_plain))
        if contender.form == "captured" and method != "backprop":
            over = ratio(one.milliseconds, [one.kernels.milliseconds] * len(one.milliseconds))
            targets.append(at_most(f"time of {contender.label} over its kernels", _OVER_KERNELS, over))
            plain = by_label.get(f"{method}, {precision}, plain")
            if plain is not None:
                memory = summarize([one.megabytes / plain.megabytes])
                targets.append(at_most(f"memory of {contender.label} over plain", _OVER_MEMORY, memory))
    return targets
