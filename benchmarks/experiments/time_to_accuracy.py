"""Test error against seconds of training, for every method on the same cores.

Every round is one seed for all methods, interleaved. Seconds are of training alone; the error is looked at after each
epoch, and a method has reached the wanted one at the end of the first epoch that is no worse.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from benchmarks.contenders.common import CHEAP_HEAD, Trained, processes
from benchmarks.contenders.methods import Method, baselines
from benchmarks.harness.crew import Crew, cores
from benchmarks.harness.figures import ratio, summarize
from benchmarks.harness.pictures import Curves
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row, Target, at_most
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override

__all__ = ["reached", "run"]

_CHEAP = "predsim, cheap head"
_LOSSES = {
    "pred": (("loss", "pred"),),
    "predsim": (("loss", "predsim"),),
    _CHEAP: (("loss", "predsim"), ("similarity_head", CHEAP_HEAD)),
}


@dataclass(frozen=True)
class _Case:
    """A network on a data set, and the test errors in percent, falling, whose times are asked for."""

    name: str
    config: RunConfig
    wanted: tuple[float, ...]
    rounds: int


_QUICK = _Case(
    "digits, vgg8b x 0.125",
    RunConfig(
        data=DataConfig(dataset="digits", train_limit=512, test_limit=128),
        model=ModelConfig(model="vgg8b", width=0.125),
        train=TrainConfig(batch_size=64, epochs=2),
    ),
    wanted=(85.0, 80.0),
    rounds=1,
)


def _cases(quick: bool, data_dir: str) -> list[_Case]:
    if quick:
        return [_QUICK]
    fashion = RunConfig(
        data=DataConfig(dataset="fashion_mnist", data_dir=data_dir, train_limit=20_480, test_limit=5_000),
        model=ModelConfig(model="mlp", hidden_layers=4),
        train=TrainConfig(epochs=6),
    )
    cifar = RunConfig(
        data=DataConfig(dataset="cifar10", data_dir=data_dir, train_limit=2_560, test_limit=1_000),
        model=ModelConfig(model="vgg8b", width=0.125),
        train=TrainConfig(epochs=5, decoder_dim=2048),
    )
    return [
        _Case("fashion_mnist, 4 x 1024", fashion, wanted=(25.0, 20.0, 18.0, 17.0), rounds=5),
        _Case("cifar10, vgg8b x 0.125", cifar, wanted=(75.0, 70.0, 65.0, 60.0), rounds=5),
    ]


def run(quick: bool, data_dir: str) -> Result:
    """Train all methods. Training samples are a multiple of the batch, as torch's schedules demand."""
    count = processes()
    cases = _cases(quick, data_dir)
    with Crew(1) as solo, Crew(count) as team:
        found = {case.name: _measure(case, _methods(case, count), {1: solo, count: team}) for case in cases}
    rows = [row for case in cases for row in _rows(case, found[case.name])]
    targets = [_target(case, found[case.name]) for case in cases]
    panels = {case.name: _curves(found[case.name]) for case in cases}
    return Result(rows, targets, Curves("seconds of training", "test error, %", panels))


def _methods(case: _Case, count: int) -> list[Method]:
    """All that train a case; flat activations have no space to save on, so that their cheap head is the paper's."""
    losses = {name: of for name, of in _LOSSES.items() if case.config.model.model != "mlp" or name != _CHEAP}
    return [
        *baselines(count, 4),
        *(Method(f"{name}, one process", "ours", 1, overrides) for name, overrides in losses.items()),
        *(Method(f"{name}, pipeline", "ours", count, overrides) for name, overrides in losses.items()),
    ]


def _measure(case: _Case, methods: Sequence[Method], crews: Mapping[int, Crew]) -> dict[Method, list[Trained]]:
    """What process 0 saw of every method, round by round."""
    found: dict[Method, list[Trained]] = {method: [] for method in methods}
    splits: dict[Method, tuple[int, ...]] = {}
    turns = [(seed, method) for seed in range(1, case.rounds + 1) for method in methods]
    for seed, method in shown(turns, case.name):
        config = replace(case.config, train=replace(case.config.train, seed=seed))
        # The network as the method would train it: its nonlinearity follows the loss.
        config = override(config, {"loss": "glob"} if method.is_backprop else {})
        if method in splits:
            config = override(config, {"split": splits[method]})
        found[method].append(method.train(crews[method.processes], config)[0])
        stages = found[method][0].stages
        if len(stages) > 1:
            splits[method] = tuple(len(stage.blocks) for stage in stages)
    return found


def reached(trained: Trained, wanted: float) -> float | None:
    """Seconds of training until the test error is `wanted` percent or less; None where it never is."""
    for seconds, error in zip(accumulate(trained.seconds), trained.errors, strict=True):
        if error is not None and error <= wanted:
            return seconds
    return None


def _rows(case: _Case, found: Mapping[Method, Sequence[Trained]]) -> list[Row]:
    rows = []
    for method, runs in found.items():
        figures = {
            "test_error_percent": summarize([run.errors[-1] or 0.0 for run in runs]),
            "epoch_seconds": summarize([seconds for run in runs for seconds in run.seconds]),
        }
        for wanted in case.wanted:
            times = _times(runs, wanted)
            if times is not None:
                figures[f"seconds_to_{wanted:g}_percent"] = summarize(times)
        settings = {
            "processes": method.processes,
            "threads": max(1, len(cores()) // method.processes),
            "epochs": case.config.train.epochs,
            "training_samples": case.config.data.train_limit,
            "curve_seconds_error": _curve(runs),
        }
        rows.append(Row(f"{case.name}: {method.label}", settings, figures))
    return rows


def _times(runs: Sequence[Trained], wanted: float) -> list[float] | None:
    """Seconds to an error in every round, or None if a round does not reach it."""
    times = [reached(run, wanted) for run in runs]
    return None if None in times else [time for time in times if time is not None]


def _target(case: _Case, found: Mapping[Method, Sequence[Trained]]) -> Target:
    """The fastest local pipeline against the fastest backprop, at the lowest error that both reach."""
    for wanted in reversed(case.wanted):
        times = {method: taken for method, runs in found.items() if (taken := _times(runs, wanted)) is not None}
        backprop = [taken for method, taken in times.items() if method.is_backprop]
        local = {m.label: taken for m, taken in times.items() if not m.is_backprop and m.label.endswith("pipeline")}
        if backprop and local:
            label, fastest = min(local.items(), key=lambda item: statistics.median(item[1]))
            best = min(backprop, key=statistics.median)
            name = f"6. {case.name}: time to {wanted:g} % error, {label}, over the best backprop"
            return at_most(name, 0.8, ratio(fastest, best))
    return Target(f"6. {case.name}: no asked error is reached by both", "at most 0.8", 0.0, False)


def _curve(runs: Sequence[Trained]) -> list[tuple[float, float]]:
    """Points (seconds, error) of a run: the median over the rounds after each epoch."""
    ends = zip(*(accumulate(run.seconds) for run in runs), strict=True)
    errors = zip(*(run.errors for run in runs), strict=True)
    points = []
    for end, error in zip(ends, errors, strict=True):
        known = [one for one in error if one is not None]
        points.append((round(statistics.median(end), 3), statistics.median(known)))
    return points


def _curves(found: Mapping[Method, Sequence[Trained]]) -> dict[str, list[tuple[float, float]]]:
    return {method.label: _curve(runs) for method, runs in found.items()}
