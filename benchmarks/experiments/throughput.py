"""Samples a second of local learning and of global backprop in all its forms, on the same cores.

The alternatives run interleaved, a round of all of them after a round that warms up and lays out the stages. Every run
is two epochs of a few batches: the first one warms up, the second is timed on the clock of the last stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.contenders.captured import warming_steps
from benchmarks.contenders.common import CHEAP_HEAD, Use, common_device, processes
from benchmarks.contenders.footprint import peak_memory
from benchmarks.contenders.methods import Method, baselines, split_of
from benchmarks.contenders.torch_schedules import CHUNKS, equal_parts
from benchmarks.harness.crew import Crew, cores
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row, Target, at_least, at_most, bars
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig

__all__ = ["MOST_PROCESSES", "run"]

_LOSSES = {
    "pred": (("loss", "pred"),),
    "predsim": (("loss", "predsim"),),
    "predsim, cheap head": (("loss", "predsim"), ("similarity_head", CHEAP_HEAD)),
}
_NETWORKS = ("vgg8b", "vgg19")  # the first one with a block for every chunk of every schedule
MOST_PROCESSES = ModelConfig(model=_NETWORKS[-1]).blocks // max(CHUNKS.values())
_ONE, _BLOCK, _GROUP = "one process", "pipeline", "pipeline, a loss a stage"
_REFERENCE = "backprop, one process"

_LOOKED_AT = (_REFERENCE, f"pred, {_BLOCK}", "backprop, DDP", "backprop, 1F1B", f"pred, {_ONE}", f"predsim, {_BLOCK}")
"""Whose peak memory is measured too, in processes of their own."""


@dataclass(frozen=True)
class _Size:
    """How much is measured."""

    width: float
    batch: int
    microbatches: int
    steps: int
    rounds: int


_FULL = _Size(width=1.0, batch=32, microbatches=4, steps=3, rounds=5)
_QUICK = _Size(width=0.125, batch=32, microbatches=4, steps=3, rounds=3)


def run(quick: bool, count: int | None = None) -> Result:
    """Measure vgg8b on synthetic images of 32x32x3, or vgg19 where `count` processes need more blocks."""
    count = count or min(processes(), MOST_PROCESSES)
    size = _sized(_QUICK if quick else _FULL, count)
    config, methods = _config(size, count), _methods(count, size)
    with Crew(1) as solo, Crew(count) as team:
        crews = {1: solo, count: team}
        splits = {
            method: split_of(method.train(crews[method.processes], method.configured(config))) for method in methods
        }
        seconds: dict[Method, list[float]] = {method: [] for method in methods}
        uses: dict[Method, list[tuple[Use, ...]]] = {method: [] for method in methods}
        for method in shown(methods * size.rounds, "rounds of all methods"):
            trained = method.train(crews[method.processes], method.configured(config, splits[method]))
            seconds[method].append(max(one.seconds[-1] for one in trained) / size.steps)
            uses[method].append(trained[0].stages)
    looked_at = [method for method in methods if method.label in _LOOKED_AT][: 2 if quick else None]
    memory = {method: peak_memory(method, method.configured(config, splits[method])) for method in looked_at}
    rows = [_row(method, seconds, size, config.model.model) for method in methods]
    stages = [row for method in methods for row in _stage_rows(method, uses[method], memory.get(method, []), size)]
    return Result([*rows, *stages], _targets(seconds), bars("samples_per_second", rows))


def _sized(size: _Size, count: int) -> _Size:
    """With so many steps that nothing is captured in those that are timed."""
    return replace(size, steps=warming_steps(size.steps, common_device(count)))


def _config(size: _Size, count: int) -> RunConfig:
    model = next(name for name in _NETWORKS if ModelConfig(model=name).blocks >= count * max(CHUNKS.values()))
    # A test sample is needed, because the last epoch is always evaluated; it lies outside the clock.
    data = DataConfig(dataset="synthetic", train_limit=size.batch * size.steps, test_limit=size.batch)
    device = common_device(count)
    train = TrainConfig(batch_size=size.batch, decoder_dim=2048, epochs=2, eval_every=2, device=device)
    return RunConfig(data=data, model=ModelConfig(model=model, width=size.width), train=train)


def _methods(count: int, size: _Size) -> list[Method]:
    group = (("segments", count),)
    return [
        *baselines(count, equal_parts(size.batch, max(size.microbatches, count))),
        *(Method(f"{name}, {_ONE}", "ours", 1, overrides) for name, overrides in _LOSSES.items()),
        *(Method(f"{name}, {_BLOCK}", "ours", count, overrides) for name, overrides in _LOSSES.items()),
        *(Method(f"{name}, {_GROUP}", "ours", count, overrides + group) for name, overrides in _LOSSES.items()),
        Method("predsim as commonly written", "reference", 1, (("loss", "predsim"),)),
    ]


def _row(method: Method, seconds: dict[Method, list[float]], size: _Size, model: str) -> Row:
    reference = next(taken for other, taken in seconds.items() if other.label == _REFERENCE)
    figures = {
        "samples_per_second": summarize([size.batch / one for one in seconds[method]]),
        "step_seconds": summarize(seconds[method]),
        "speed_ratio_to_backprop": ratio(reference, seconds[method]),
    }
    settings = {"processes": method.processes, "threads": max(1, len(cores()) // method.processes)}
    return Row(method.label, settings | {"model": model, "width": size.width, "batch": size.batch}, figures)


def _stage_rows(
    method: Method, uses: Sequence[tuple[Use, ...]], memory: Sequence[float], size: _Size
) -> Iterator[Row]:
    """One row a process: its peak memory, and where it holds a stage how busy that was and what it sent."""
    steps = 2 * size.steps + 1  # the batch that is evaluated travels too
    for rank in range(method.processes):
        figures, settings = {}, {}
        if memory:
            figures["peak_memory_megabytes"] = summarize([memory[rank]])
        if uses[0]:
            figures["busy_percent"] = summarize([100 * stages[rank].busy_fraction for stages in uses])
            figures["megabytes_sent_per_step"] = summarize([stages[rank].bytes_sent / 1e6 / steps for stages in uses])
            settings["blocks"] = list(uses[0][rank].blocks)
        if figures:
            yield Row(f"{method.label}: process {rank}", settings, figures)


def _targets(seconds: dict[Method, list[float]]) -> list[Target]:
    taken = {method.label: values for method, values in seconds.items()}
    reference = taken[_REFERENCE]
    best = min((values for method, values in seconds.items() if method.is_backprop), key=lambda v: summarize(v).median)
    cheap = "predsim, cheap head"

    def time(name: str) -> Figure:
        return ratio(taken[f"{name}, {_ONE}"], reference)

    def speed(name: str) -> Figure:
        return ratio(best, taken[f"{name}, {_BLOCK}"])

    common = ratio(taken["predsim as commonly written"], taken[f"predsim, {_ONE}"])
    return [
        at_most("1. time of a pred step over a backprop step, one process", 0.75, time("pred")),
        at_most("1. time of a predsim step over a backprop step, one process", 2.5, time("predsim")),
        at_most("2. time of a predsim step with the cheap head over a backprop step, one process", 1.0, time(cheap)),
        at_least("5. speed of the pred pipeline over the best backprop on the same cores", 1.3, speed("pred")),
        at_least("5. speed of the predsim pipeline, cheap head, over the best backprop", 1.0, speed(cheap)),
        at_least("speed of predsim in one process over the same as commonly written", 1.0, common),
    ]
