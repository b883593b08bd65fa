"""Cheaper similarity heads: the test error they cost and the time they save, against the paper's head.

Takes an hour or two. Every training run leaves its folder, so that an experiment that was broken off goes on where it
stopped; delete `runs/benchmarks/heads` to begin anew.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.contenders.captured import warming_steps
from benchmarks.contenders.common import CHEAP_HEAD, barrier, choose_device
from benchmarks.contenders.heads import CANDIDATES, with_head
from benchmarks.contenders.methods import Method
from benchmarks.contenders.methods import train as train_method
from benchmarks.harness.crew import Crew, Member, cores
from benchmarks.harness.figures import Difference, ratio, summarize
from benchmarks.harness.jobs import Core, work_off
from benchmarks.harness.pictures import Bars
from benchmarks.harness.progress import counted, shown
from benchmarks.harness.report import Result, Row, Target, at_most
from benchmarks.harness.settings import RESOLVED, departures
from pipeline.config.placement import Placement
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override
from pipeline.config.toml import read_toml
from pipeline.errors import DataError
from pipeline.network.spec import Network
from pipeline.network.zoo import named_network
from pipeline.training import Options
from pipeline.training import run as train

__all__ = ["difference", "run"]

_PAPER, _PRED = "conv", "pred"  # the reference, and no similarity at all
_HEADS = (_PAPER, "pool-2", "pool-4", CHEAP_HEAD, "stride-4", "grouped-8", "none", _PRED)
_DECODER_DIM = {"cifar10": 2048, "fashion_mnist": 1024, "digits": 4096}
_TOLERANCE = 0.2  # points of test error that a head may cost
_NOT_THE_METHOD = RESOLVED | {"data_dir", *(f.name for f in fields(Placement))}
_FOLDER = Path("runs") / "benchmarks" / "heads"
_LIMIT_S = 900.0  # seconds of a training

_Job = tuple[str, str, int]  # data set, head and seed


@dataclass(frozen=True)
class _Size:
    """How much is trained and measured."""

    datasets: tuple[str, ...]
    width: float
    train_limit: int
    test_limit: int
    epochs: int
    seeds: int
    heads: tuple[str, ...]
    timed_width: float
    rounds: int


_FULL = _Size(("fashion_mnist", "cifar10"), 0.25, 10_000, 5_000, 3, 3, _HEADS, 1.0, 5)
_QUICK = _Size(("digits",), 0.125, 256, 128, 1, 2, (_PAPER, CHEAP_HEAD, _PRED), 0.125, 3)


def difference(values: Sequence[float], references: Sequence[float]) -> Difference:
    """Mean of `values` minus mean of `references`, at least two of each; the standard error is Welch's."""
    error = math.sqrt(statistics.variance(values) / len(values) + statistics.variance(references) / len(references))
    return Difference(statistics.fmean(values) - statistics.fmean(references), error)


def run(quick: bool, data_dir: str) -> Result:
    """Train with every head on every data set and seed, then time a step of each against global backprop."""
    size = _QUICK if quick else _FULL
    errors = _train_all(size, data_dir, _FOLDER / ("quick" if quick else "full"))
    with Crew(1) as crew:
        seconds = _time_all(size, crew)
    rows = [_row(dataset, head, errors, seconds) for dataset in size.datasets for head in size.heads]
    targets = [
        _verdict(dataset, CHEAP_HEAD, errors[dataset, CHEAP_HEAD], errors[dataset, _PAPER])
        for dataset in size.datasets
    ]
    cost = ratio(seconds[CHEAP_HEAD], seconds["backprop"])
    shown = {row.label: row.figures["test_error_percent"] for row in rows}
    targets.append(at_most(f"2. step time with {CHEAP_HEAD} over a backprop step", 1.0, cost))
    return Result(rows, targets, Bars("test error, % (narrow network, short training)", shown))


def _config(size: _Size, dataset: str, seed: int, data_dir: str) -> RunConfig:
    return RunConfig(
        data=DataConfig(dataset=dataset, data_dir=data_dir, train_limit=size.train_limit, test_limit=size.test_limit),
        model=ModelConfig(model="vgg8b", width=size.width),
        train=TrainConfig(
            decoder_dim=_DECODER_DIM[dataset], epochs=size.epochs, eval_every=size.epochs, seed=seed, threads=1
        ),
    )


def _train_all(size: _Size, data_dir: str, folder: Path) -> dict[tuple[str, str], list[float]]:
    """Test errors by (data set, head), one of every seed: a run on each core, one thread each."""
    jobs = [
        (dataset, head, seed) for seed in range(1, size.seeds + 1) for head in size.heads for dataset in size.datasets
    ]
    errors: dict[_Job, float] = {}

    def left(busy: Collection[_Job]) -> Sequence[_Job]:
        return [job for job in jobs if job not in errors and job not in busy]

    def trained(job: _Job, core: Core) -> float:
        dataset, head, seed = job
        return _error(folder / f"{dataset}-{head}-{seed}", _config(size, dataset, seed, data_dir), head, core)

    with counted(len(jobs), "training runs") as one_more:

        def done(job: _Job, error: float) -> None:
            errors[job] = error
            one_more()

        work_off(cores(), _LIMIT_S, ready=left, do=trained, done=done)
    found: dict[tuple[str, str], list[float]] = {}
    for dataset, head, seed in jobs:
        found.setdefault((dataset, head), []).append(errors[dataset, head, seed])
    return found


def _error(folder: Path, config: RunConfig, head: str, core: Core) -> float:
    """Test error of a run, trained now unless its folder holds the result.

    Raises DataError where the folder holds that of another configuration.
    """
    summary = folder / "summary.json"
    if not summary.exists():
        core.call(_train, config, head, str(folder))
    differ = departures(read_toml(folder / "config.toml"), _configured(config, head)).keys() - _NOT_THE_METHOD
    if differ:
        raise DataError(f"{folder} holds a run of other settings ({', '.join(sorted(differ))}); remove it")
    error = json.loads(summary.read_text(encoding="utf-8"))["test_error_percent"]
    return math.nan if error is None else float(error)


def _train(member: Member, config: RunConfig, head: str, folder: str | None = None) -> float:
    """Train with a head of the product, one that is passed as modules, or `pred`; seconds of the last epoch."""
    config = _configured(config, head)

    def network(shape: tuple[int, ...], classes: int) -> Network:
        named = named_network(config.model, shape, classes, config.train.loss)
        return with_head(named, head) if head in CANDIDATES else named

    result = train(config, Options(output=folder, overwrite=True), network)
    barrier(member, choose_device(member, config))
    return result.epochs[-1].seconds


def _configured(config: RunConfig, head: str) -> RunConfig:
    if head in CANDIDATES:
        return config
    return override(config, {"loss": _PRED} if head == _PRED else {"similarity_head": head})


def _backprop(member: Member, config: RunConfig, head: str) -> float:
    """Likewise, without any head."""
    backprop = Method("backprop", "backprop", 1)
    return train_method(member, backprop, override(config, {"loss": "glob"})).seconds[-1]


def _time_all(size: _Size, crew: Crew) -> dict[str, list[float]]:
    """Seconds of a step of vgg8b on synthetic images, all cores, alternatives interleaved; a first round warms up."""
    train = TrainConfig(batch_size=32, epochs=2, eval_every=2, decoder_dim=2048, threads=len(cores()))
    steps = warming_steps(2, train.device)
    config = RunConfig(
        data=DataConfig(dataset="synthetic", train_limit=steps * train.batch_size, test_limit=train.batch_size),
        model=ModelConfig(model="vgg8b", width=size.timed_width),
        train=train,
    )
    seconds: dict[str, list[float]] = {name: [] for name in ("backprop", *size.heads)}
    for name in shown(list(seconds) * (size.rounds + 1), "steps of every head"):
        trained = crew.call(_backprop if name == "backprop" else _train, config, name)
        seconds[name].append(trained[0] / steps)
    return {name: taken[1:] for name, taken in seconds.items()}


def _row(
    dataset: str, head: str, errors: Mapping[tuple[str, str], Sequence[float]], seconds: Mapping[str, Sequence[float]]
) -> Row:
    figures = {
        "test_error_percent": summarize(errors[dataset, head]),
        "step_time_over_backprop": ratio(seconds[head], seconds["backprop"]),
    }
    settings: dict[str, object] = {"dataset": dataset, "head": head, "mean": statistics.fmean(errors[dataset, head])}
    if head != _PAPER:
        found = difference(errors[dataset, head], errors[dataset, _PAPER])
        settings |= {"minus_full_head": found.mean, "standard_error": found.standard_error}
    return Row(f"{dataset}: {head}", settings, figures)


def _verdict(dataset: str, head: str, errors: Sequence[float], full: Sequence[float]) -> Target:
    """Whether a head is within 0.2 points of the full one, or within the standard error of the difference."""
    found = difference(errors, full)
    name = f"2. {dataset}: test error with {head} minus the full head's, points, ± {found.standard_error:.2f}"
    met = found.mean <= max(_TOLERANCE, found.standard_error)
    return Target(name, f"at most {_TOLERANCE:g} or its standard error", found.mean, met)
