"""The public call: the same code in one process and, under torchrun, in one process a stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.config.plain import plain_text
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.config.toml import to_toml
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import Block
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.zoo import named_network
from pipeline.report.collector import Collector
from pipeline.report.display import Display, create_display
from pipeline.report.gather import gather_plan, gather_summary, gather_trace, report_plan, report_summary
from pipeline.report.records import EpochRecord, Summary
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.agreement import SIZES, Layout, NetworkFactory, Sizes, agree_on_layout, check_same_configuration
from pipeline.runtime.checkpoint import collect_state, digest
from pipeline.runtime.cores import staying_on
from pipeline.runtime.exclusive import only_run
from pipeline.runtime.failures import failures_told
from pipeline.runtime.feed import Feed
from pipeline.runtime.session import Session
from pipeline.runtime.topology import Topology
from pipeline.runtime.world import World, connect, reproducible
from pipeline.spans import Recorder
from pipeline.transport.topics import Topic

__all__ = ["Options", "TrainResult", "run", "train"]


@dataclass(frozen=True)
class Options:
    """What a run leaves behind and shows; none of it changes the weights."""

    output: str | None = None
    overwrite: bool = False
    trace: str | None = None
    show: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What every process gets: the summary, the epochs, and the trained blocks."""

    summary: Summary
    epochs: tuple[EpochRecord, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def model(self) -> nn.Sequential:
        """The trained network as an ordinary module in evaluation mode (library calls only)."""
        return nn.Sequential(*self.blocks).eval()


_OUTCOME = Topic("outcome", TrainResult)  # without blocks


@dataclass(frozen=True)
class _Job:
    """The difference between a run from the command line and a library call."""

    config: TrainConfig
    dataset: str
    model: str
    network: NetworkFactory
    batches: Callable[[torch.device], Batches]
    effective: Callable[[TrainConfig], RunConfig | TrainConfig]  # what config.toml holds
    given: tuple[Block, ...] = ()


def train(
    blocks: Sequence[nn.Module],
    train_data: Dataset[Any],
    test_data: Dataset[Any],
    config: TrainConfig | None = None,
    *,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    trace: str | PathLike[str] | None = None,
    show: bool = False,
) -> TrainResult:
    """Train blocks with local losses: in one process, or with one stage a process.

    Several processes are those of torchrun, or of a process group that the caller has made.

    Settings of torch such as the default number format are torch's own meanwhile, and the caller's afterwards.

    Args:
        blocks: from `blocks_from` or `create_model`; trained in place. Process 0's weights count.
        train_data: map-style data set of (image, label); only process 0 reads it.
        test_data: likewise, evaluated after each epoch.
        config: how to train; the defaults are the paper's.
        output: folder for metrics, summary, weights and curves; None writes nothing.
        overwrite: replace a run that `output` holds.
        trace: file for a timeline in Chrome trace format.
        show: print progress.

    Returns:
        The same result in every process.

    Raises:
        ConfigError: a value or combination that cannot be trained, or another run is under way in this process.
        DataError: data that does not fit.
        StageFailure: a stage failed under way; raised in every process.
    """
    config = config or TrainConfig()
    network = given_network(blocks)
    given = tuple(spec.given for spec in network if spec.given is not None)
    job = _Job(
        config=config,
        dataset=type(train_data).__name__,
        model=CUSTOM,
        network=lambda shape, classes: network,
        batches=lambda device: Batches.from_datasets(
            train_data, test_data, seed=config.seed, batch_size=config.batch_size, device=device
        ),
        effective=lambda effective: effective,
        given=given,
    )
    return _execute(job, Options(_path("output", output), overwrite, _path("trace", trace), show))


def _path(name: str, given: str | PathLike[str] | None) -> str | None:
    path = plain_text(given)
    if path is None or isinstance(path, str):
        return path
    raise ConfigError(f"{name} is {path!r}; give a path, or None")


def run(config: RunConfig, options: Options, network: NetworkFactory | None = None) -> TrainResult:
    """Train a named network, or `network` in its place, on a named data set. Raises as `train`."""
    train_config = config.train
    job = _Job(
        config=train_config,
        dataset=config.data.dataset,
        model=config.model.model,
        network=network or (lambda shape, classes: named_network(config.model, shape, classes, train_config.loss)),
        batches=lambda device: Batches.from_config(
            config.data, seed=train_config.seed, batch_size=train_config.batch_size, device=device
        ),
        effective=partial(_effective, config),
    )
    return _execute(job, options)


def _effective(config: RunConfig, train_config: TrainConfig) -> RunConfig:
    """The configuration with every automatic value replaced by what it came to."""
    nonlinearity = config.model.nonlinearity_for(train_config.loss)
    return replace(config, model=replace(config.model, nonlinearity=nonlinearity), train=train_config)


def _execute(job: _Job, options: Options) -> TrainResult:
    """Meet the other processes, carry the run out, and leave nothing of it behind, however it ends."""
    with only_run(), connect(job.config) as world:
        display = create_display(options.quiet) if options.show and world.rank == 0 else Display()
        with failures_told(world.control), contextlib.closing(display):
            device = world.control.together("device choice", lambda: world.choose_device(job.config.device))
            with reproducible(job.config, world.threads, device):
                return _carry_out(job, options, world, device, display)


def _carry_out(job: _Job, options: Options, world: World, device: torch.device, display: Display) -> TrainResult:
    """Lay out, build, train, gather."""
    control, config, numerics = world.control, job.config, Numerics(device, job.config.precision)
    control.together("configuration", lambda: check_same_configuration(control, config))
    folder, batches, sizes = _open(job, options, world, device)
    layout = agree_on_layout(control, config, job.network, sizes, numerics, world.seat)
    split, topology = layout.split, Topology.over(layout.split, world.size)
    config = replace(config, segments=layout.segments, split=split, stages=len(split), threads=_threads(layout))
    torch.set_num_threads(layout.threads[world.rank])
    if folder is not None:
        folder.write_config(to_toml(job.effective(config)))
    world.bulk.from_first(_state(job.given))
    stages = [
        build_stage(config, layout.network, layout.shapes, layout.classes, split, index, numerics)
        for index in topology.stages_of(world.rank)
    ]
    links = world.links(device)
    report_plan(control, stages, layout)
    plan = None
    if world.rank == 0:
        plan = gather_plan(control, config, topology, sizes, links.transport, dataset=job.dataset, model=job.model)
        display.start(plan)
    collector = Collector(config, display, folder)
    recorder = Recorder(enabled=options.trace is not None, synchronize=stages[0].synchronize)
    session = Session(stages, topology, config, control, links, collector, recorder)
    with staying_on(layout.cores), session:
        session.run(None if batches is None else Feed(batches, config))
    weights, state_sha256 = collect_state(stages, topology, world.bulk)
    note = gather_trace(control, recorder, plan, options.trace)
    if note is not None:
        display.note(note)
    report_summary(stages, session)
    outcome = None
    if plan is not None:
        summary = gather_summary(control, config, plan, sizes, collector.records, digest(weights), state_sha256)
        if folder is not None:
            folder.finish(summary, weights, collector.records, sizes.shape, sizes.classes)
        display.finish(summary, None if folder is None else str(folder.path), [spec.name for spec in layout.network])
        outcome = TrainResult(summary, tuple(collector.records))
    outcome = _OUTCOME.share(control, outcome)
    _give_back(job.given, weights, world)
    return replace(outcome, blocks=job.given)


def _open(
    job: _Job, options: Options, world: World, device: torch.device
) -> tuple[RunFolder | None, Batches | None, Sizes]:
    """Process 0 opens data and run folder, and tells the others what they need to know."""

    def first() -> tuple[RunFolder | None, Batches]:
        batches, trace, output = job.batches(device), options.trace, options.output
        if trace is not None and not Path(trace).parent.is_dir():
            raise ConfigError(f"--trace {trace} cannot be written (no folder {Path(trace).parent}); create it first")
        return None if output is None else _begin_folder(output, options.overwrite, world), batches

    folder, batches = world.control.together("start", first if world.rank == 0 else lambda: (None, None))
    mine = None
    if batches is not None:
        mine = Sizes(tuple(batches.shape), batches.classes, batches.train_samples, batches.steps_per_epoch)
    return folder, batches, SIZES.share(world.control, mine)


def _begin_folder(output: str, overwrite: bool, world: World) -> RunFolder:
    """The run folder; one that an earlier attempt of this launch has begun is begun anew."""
    name = f"folder {Path(output).absolute()}"
    folder = RunFolder(output, overwrite=overwrite or world.attempts.has_begun(name))
    world.attempts.begin(name)
    return folder


def _threads(layout: Layout) -> tuple[int, ...] | int:
    """As `--threads` takes them."""
    return layout.threads[0] if len(set(layout.threads)) == 1 else layout.threads


def _state(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Weights and buffers of a user's blocks, by the names of `model.safetensors`."""
    return {f"{index}.{name}": x for index, block in enumerate(blocks) for name, x in block.state_dict().items()}


def _give_back(blocks: Sequence[Block], weights: Mapping[str, Tensor], world: World) -> None:
    """The trained weights into a user's blocks, in every process."""
    for block in blocks:
        block.to("cpu").eval()
    if world.rank == 0:
        for name, tensor in _state(blocks).items():
            tensor.copy_(weights[name])
    world.bulk.from_first(_state(blocks))
