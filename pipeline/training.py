"""The public call: the same code in one process and, under torchrun, in one process a stage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.config.method import Method
from pipeline.config.paths import absolute, check_working_folder, expanded
from pipeline.config.resume import AUTO
from pipeline.config.schema import ModelConfig, RunConfig, TrainConfig
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError, Interrupted
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import Block
from pipeline.network.borrowing import borrowed
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.zoo import named_network
from pipeline.report.collector import Collector
from pipeline.report.display import Display, Unseen, create_display
from pipeline.report.gather import gather_plan, gather_summary, gather_trace, report_plan, report_summary
from pipeline.report.keeping import Beginning, Keeping, begin, load, look_for_parts, saver_of
from pipeline.report.records import EpochRecord, Summary
from pipeline.report.run_folder import RunFolder, check_kept
from pipeline.report.sheltered import Sheltered
from pipeline.report.trace_file import TraceFile
from pipeline.runtime.agreement import SIZES, Layout, NetworkFactory, Sizes, agree_on_layout, check_same_configuration
from pipeline.runtime.checkpoint import collect_state, digest
from pipeline.runtime.cores import staying_on
from pipeline.runtime.exclusive import only_run
from pipeline.runtime.failures import failures_told
from pipeline.runtime.feed import Feed
from pipeline.runtime.parts import Parts, has_saved
from pipeline.runtime.preparation import prepare
from pipeline.runtime.requests import Requests
from pipeline.runtime.resume import split_of
from pipeline.runtime.session import Session
from pipeline.runtime.topology import Topology
from pipeline.runtime.world import World, connect, reproducible
from pipeline.spans import Recorder
from pipeline.text import shown
from pipeline.transport.topics import Topic

__all__ = ["Options", "TrainResult", "run", "train"]


@dataclass(frozen=True)
class Options:
    """What a run begins with, leaves behind and shows, and what may be asked of it."""

    output: str | None = None
    overwrite: bool = False
    trace: str | None = None
    resume: str | None = None
    init_from: str | None = None
    renames: bool = False  # whether another folder will do where there is something in `output`
    show: bool = False
    quiet: bool = False
    requests: Requests = field(default_factory=Requests)


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
_TRACED = Topic("traced", bool)


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
    named: ModelConfig | None = None  # the network that has a name


def train(
    blocks: Sequence[nn.Module],
    train_data: Dataset[Any],
    test_data: Dataset[Any],
    config: TrainConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    trace: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
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
        resume: go on from the newest complete checkpoint of the run in this folder; `auto` is `output`, where none is
            a fresh start. Without `output` the run goes on in that folder.
        show: print progress.

    Returns:
        The same result in every process.

    Raises:
        ConfigError: a value or combination that cannot be trained, or another run is under way in this process.
        DataError: data that does not fit.
        StageFailure: a stage failed under way; raised in every process.
    """
    config = TrainConfig() if config is None else config
    if not isinstance(config, Method):  # a TrainConfig of a module that was loaded anew is another class
        raise ConfigError(f"config is {shown(config)}; give a pipeline.TrainConfig, such as TrainConfig(epochs=10)")
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
    source = _path("--resume", resume, AUTO)
    target = _path("--output", output) or (source if source != AUTO else None)
    return _execute(job, Options(target, overwrite, _path("--trace", trace), source, show=show))


def _path(name: str, given: str | os.PathLike[str] | None, word: str | None = None) -> str | None:
    """From the root on, as a user's data set may change the working folder; `word` is none."""
    found = None if given is None else expanded(name, given)
    return found if found in (None, word) else absolute(name, found)


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
        named=config.model,
    )
    return _execute(job, options)


def _effective(config: RunConfig, train_config: TrainConfig) -> RunConfig:
    """The configuration with every automatic value replaced by what it came to."""
    nonlinearity = config.model.nonlinearity_for(train_config.loss)
    return replace(config, model=replace(config.model, nonlinearity=nonlinearity), train=train_config)


def _execute(job: _Job, options: Options) -> TrainResult:
    """Meet the other processes, carry the run out, and leave nothing of it behind, however it ends."""
    with only_run(), connect(job.config, options.requests.fail) as world:
        shown = options.show and world.rank == 0
        display = Sheltered(lambda: create_display(options.quiet)) if shown else Unseen()
        with failures_told(world.control), contextlib.closing(display):
            world.control.together("working folder", check_working_folder)
            device = world.control.together("device choice", lambda: world.choose_device(job.config.device))
            with reproducible(job.config, world.threads, device), borrowed(job.given):
                return _carry_out(job, options, world, device, display)


def _carry_out(job: _Job, options: Options, world: World, device: torch.device, display: Display) -> TrainResult:
    """Open what is read and written, train, and close it."""
    world.control.together(
        "configuration", lambda: check_same_configuration(world.control, job.config, job.named, job.given)
    )
    with contextlib.ExitStack() as closing:
        opened = _open(job, options, world, device, closing)
        return _train(job, options, world, device, display, opened)


def _train(
    job: _Job, options: Options, world: World, device: torch.device, display: Display, opened: _Opened
) -> TrainResult:
    """Lay out, build, train, gather."""
    control, numerics = world.control, Numerics(device, job.config.precision)
    beginning, trace, batches, sizes = opened
    folder = beginning.folder
    kept = split_of(beginning.checkpoint) if beginning.checkpoint and job.config.wire_rounds else None
    config, working, layout = _lay_out(job, world, sizes, numerics, kept)
    topology = Topology.over(layout.split, world.size)
    torch.set_num_threads(layout.threads[world.rank])
    keeping = Keeping(job.effective(config), job.dataset, job.model, sizes)
    told = control.together("resume", lambda: keeping.go_on(beginning))
    world.bulk.from_first(_buffers(job.given) | _state(job.given))
    build = partial(build_stage, working, layout.network, layout.shapes, layout.classes, layout.split)
    stages = [build(index, numerics, sizes.steps_per_epoch) for index in topology.stages_of(world.rank)]
    start, epoch_s = load(beginning, options.init_from, stages, topology, world.bulk)
    if batches is not None:
        prepare(stages[0].blocks[0].block, batches)
    links = world.links(device)
    control.together("run folder", lambda: keeping.begin(folder))  # now that mistakes have been found
    report_plan(control, stages, layout)
    plan = None
    if batches is not None:
        notes = (*batches.notes, *told)
        plan = gather_plan(
            control, config, topology, sizes, links.transport, start, dataset=job.dataset, model=job.model, notes=notes
        )
        display.start(plan)
    saver = saver_of(folder, keeping, config, topology, control, start)
    collector = Collector(config, sizes.steps_per_epoch, display, folder, keeping.records, saver)
    traced = _TRACED.share(control, trace is not None if world.rank == 0 else None)
    recorder = Recorder(enabled=traced, synchronize=stages[0].synchronize)
    session = Session(stages, topology, working, control, links, collector, recorder, options.requests)
    feed = None if batches is None else Feed(batches, config, saver, options.requests)
    with staying_on(layout.cores), session, saver or contextlib.nullcontext():
        session.run(feed, start, epoch_s)
    _check_finished(session, config, folder)
    collected = collect_state(stages, topology, world.bulk)
    report_summary(stages, session)
    summary, failure, undrawn = None, None, list[str]()
    if plan is not None:
        digests = digest(collected.weights), collected.sha256
        try:
            summary = gather_summary(control, config, plan, sizes, collector.records, *digests)
            if folder is not None:
                undrawn = folder.finish(
                    summary, collected.weights, collected.exits, collector.records, sizes.shape, sizes.classes
                )
        except Exception as error:  # such as of a full disk; the weights come back first
            failure = error
    _give_back(job.given, collected.weights, world)
    if failure is not None:
        raise failure
    if summary is not None:
        display.finish(summary, None if folder is None else str(folder.path), [spec.name for spec in layout.network])
    outcome = _OUTCOME.share(control, None if summary is None else TrainResult(summary, tuple(collector.records)))
    for note in undrawn + gather_trace(world.bulk, recorder, plan, trace):
        display.note(note)
    return replace(outcome, blocks=job.given)


def _lay_out(
    job: _Job, world: World, sizes: Sizes, numerics: Numerics, kept: tuple[int, ...] | None
) -> tuple[TrainConfig, TrainConfig, Layout]:
    """The configuration with what is agreed on, such as a split that is `kept`, the same as worked with, the layout.

    Nothing is measured or kept for more samples than there are.
    """
    working = replace(job.config, batch_size=sizes.largest_batch(job.config.batch_size))
    layout = agree_on_layout(world.control, working, job.network, sizes, numerics, world.seat, kept)
    config = replace(
        job.config,
        segments=layout.segments,
        first_cut_after=None,
        split=layout.split,
        stages=len(layout.split),
        threads=_threads(layout),
    )
    return config, replace(config, batch_size=working.batch_size), layout


def _check_finished(session: Session, config: TrainConfig, folder: RunFolder | None) -> None:
    """Raise Interrupted, the same in all processes, if the run was asked to end before it was done."""
    at = session.control.at
    if at.epoch <= config.epochs:
        saved = "" if folder is None else f"; go on with --resume {folder.path}"
        error = Interrupted(f"interrupted at epoch {at.epoch}, step {at.step} of the run{saved}")
        error.rank = 0
        raise error


_Opened = tuple[Beginning, TraceFile | None, Batches | None, Sizes]
"""Where the run begins, the trace and the data, which process 0 alone has, and what all know of the data."""


def _open(job: _Job, options: Options, world: World, device: torch.device, closing: contextlib.ExitStack) -> _Opened:
    """Process 0 opens data, run folder and trace, and tells the others what they need to know.

    `closing` is given what must be closed, also if this fails half-way.
    """

    name, options = _name(options), _taken_over(options, world)
    parts = look_for_parts(world.control, options.output, options.resume)

    def first() -> tuple[Beginning, TraceFile | None, Batches | None]:
        batches, output = job.batches(device), options.output
        trace = None if options.trace is None else TraceFile(options.trace, output)
        if output is not None:
            check_kept(_state(job.given))
        beginning = _begin(options, closing, parts)
        if beginning.folder is not None:
            world.attempts.begin(name, str(beginning.folder.path))
        if trace is not None:
            trace.check_writable()
        return beginning, trace, batches

    nothing = (Beginning(parts=parts), None, None)
    beginning, trace, batches = world.control.together("start", first if world.rank == 0 else lambda: nothing)
    mine = None
    if batches is not None:
        mine = Sizes(
            tuple(batches.shape),
            batches.classes,
            batches.train_samples,
            batches.test_samples,
            batches.steps_per_epoch,
        )
    return beginning, trace, batches, SIZES.share(world.control, mine)


def _begin(options: Options, closing: contextlib.ExitStack, parts: Parts | None) -> Beginning:
    """Open the run folder, and find what to go on from."""
    beginning = begin(
        options.output, overwrite=options.overwrite, resume=options.resume, renames=options.renames, parts=parts
    )
    if beginning.folder is not None:
        closing.callback(beginning.folder.close)
    return beginning


def _taken_over(options: Options, world: World) -> Options:
    """Go on in the run folder that an earlier attempt of this launch has begun, if one has; process 0 alone asks.

    From another run's checkpoint, as that attempt did, where it has saved none of its own.
    """
    begun = None if options.output is None or world.rank > 0 else world.attempts.begun(_name(options))
    if begun is None:
        return options
    if options.resume in (None, AUTO) or has_saved(Path(begun, "checkpoints")):
        return replace(options, output=begun, overwrite=False, resume=AUTO, renames=False)
    return replace(options, output=begun, overwrite=True, renames=False)


def _name(options: Options) -> str:
    """By which the attempts of a launch know a run folder: one that nobody has named has another path in each."""
    return "own folder" if options.renames or options.output is None else f"folder {Path(options.output).absolute()}"


def _threads(layout: Layout) -> tuple[int, ...] | int:
    """As `--threads` takes them."""
    return layout.threads[0] if len(set(layout.threads)) == 1 else layout.threads


def _state(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Weights and buffers of a user's blocks, by the names of `model.safetensors`."""
    return {f"{index}.{name}": x for index, block in enumerate(blocks) for name, x in block.state_dict().items()}


def _buffers(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Those, too, that are not kept with the weights, such as tables that each process has drawn for itself."""
    named = ((f"{index}.{name}", x) for index, block in enumerate(blocks) for name, x in block.named_buffers())
    return {name: x for name, x in named if x.layout == torch.strided}


def _give_back(blocks: Sequence[Block], weights: Mapping[str, Tensor], world: World) -> None:
    """The trained weights into a user's blocks, in every process."""
    for block in blocks:
        block.to("cpu").eval()
    if world.rank == 0:
        for name, tensor in _state(blocks).items():
            tensor.copy_(weights[name])
    world.bulk.from_first(_state(blocks))
