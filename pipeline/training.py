"""The public call: the same code in one process and, under torchrun, in one process a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.config.toml import to_toml
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError, PipelineError, first_line
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import Block
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.zoo import named_network
from pipeline.report.collector import Monitor
from pipeline.report.display import Display, NullDisplay, create_display
from pipeline.report.gather import gather_plan, gather_summary, gather_trace, report_plan, report_summary
from pipeline.report.records import EpochRecord, Summary
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.agreement import (
    Layout,
    NetworkFactory,
    Sizes,
    agree_on_layout,
    check_same_configuration,
    share_sizes,
)
from pipeline.runtime.channels import connect_stage
from pipeline.runtime.checkpoint import FinalState, collect_state
from pipeline.runtime.feed import packets
from pipeline.runtime.worker import Ends, Worker
from pipeline.runtime.world import LinkFactory, World, connect, reproducible
from pipeline.spans import Recorder
from pipeline.transport.control import known_to_all, lost_connection

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
    output: str | None = None,
    overwrite: bool = False,
    trace: str | None = None,
    show: bool = False,
) -> TrainResult:
    """Train blocks with local losses: in one process, or under torchrun with one stage a process.

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
        ConfigError: a value or combination that cannot be trained.
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
    return _execute(job, Options(output, overwrite, trace, show))


def run(config: RunConfig, options: Options) -> TrainResult:
    """Train a named network on a named data set, as the command line does. Raises as `train`."""
    train_config = config.train
    job = _Job(
        config=train_config,
        dataset=config.data.dataset,
        model=config.model.model,
        network=lambda shape, classes: named_network(config.model, shape, classes, train_config.loss),
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
    """Connect, run, and turn any failure into the error of the process that failed first."""
    world = connect(job.config)
    display = create_display(options.quiet) if options.show and world.rank == 0 else NullDisplay()
    try:
        device = world.control.together("device choice", lambda: world.choose_device(job.config.device))
        with reproducible(job.config, world.threads, device):
            return _Run(job, options, world, device, display).execute()
    except PipelineError as error:
        if not known_to_all(error):  # such as an image that cannot be read, met under way
            raise world.control.fail(str(error)) from error
        raise
    except OSError as error:  # such as a full disk
        raise world.control.fail(f"stage {world.rank} cannot read or write: {error}") from error
    except torch.OutOfMemoryError as error:
        raise world.control.fail(f"stage {world.rank} ran out of memory: {first_line(error)}") from error
    except Exception as error:
        if lost_connection(error):
            raise world.control.lost(None, first_line(error)) from error
        world.control.fail(f"stage {world.rank} failed: {type(error).__name__}: {first_line(error)}")
        raise
    finally:
        display.close()
        world.control.close()


class _Run:
    """One run in one process, start to end."""

    def __init__(self, job: _Job, options: Options, world: World, device: torch.device, display: Display) -> None:
        self.job, self.options, self.world, self.device, self.display = job, options, world, device, display
        self.config, self.control = job.config, world.control
        self.numerics = Numerics(device, job.config.precision)
        synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
        self.recorder = Recorder(enabled=options.trace is not None, synchronize=synchronize)

    def execute(self) -> TrainResult:
        """Lay out, build, train, gather."""
        self.control.together("configuration", lambda: check_same_configuration(self.control, self.config))
        folder, batches, sizes = self._open()
        layout = agree_on_layout(self.control, self.config, self.job.network, sizes, self.numerics)
        split = layout.split
        self.config = replace(
            self.config, segments=layout.segments, split=split, stages=len(split), threads=self.world.threads
        )
        if folder is not None:
            folder.write_config(to_toml(self.job.effective(self.config)))
        self._share_given_weights()
        stages = self._build(layout)
        links = self.world.links(self.device)
        self._show_plan(stages, layout, sizes, links)
        ends = self._ends(stages, layout, links, batches)
        worker = Worker(stages, ends, self.config, self.control, self.recorder)
        records = self._work(worker, folder)
        self._end_queues(ends)
        final = collect_state(stages, split, self.control)
        note = gather_trace(self.control, self.recorder, len(split), self.options.trace)
        if note is not None:
            self.display.note(note)
        summary = self._summarize(worker, sizes, records, final)
        links.close()
        if summary is not None:
            self._leave_behind(summary, final, records, folder, layout, sizes)
        return self._result(summary, records, final)

    def _open(self) -> tuple[RunFolder | None, Batches | None, Sizes]:
        """Process 0 opens data and run folder, and tells the others what they need to know."""
        if self.world.rank != 0:
            self.control.together("start", lambda: None)
            return None, None, share_sizes(self.control, None)
        folder, batches = self.control.together("start", self._open_first)
        sizes = Sizes(tuple(batches.shape), batches.classes, batches.train_samples, batches.steps_per_epoch)
        return folder, batches, share_sizes(self.control, sizes)

    def _open_first(self) -> tuple[RunFolder | None, Batches]:
        batches = self.job.batches(self.device)
        trace, output = self.options.trace, self.options.output
        if trace is not None and not Path(trace).parent.is_dir():
            raise ConfigError(f"--trace {trace} cannot be written (no folder {Path(trace).parent}); create it first")
        return None if output is None else RunFolder(output, overwrite=self.options.overwrite), batches

    def _share_given_weights(self) -> None:
        """Process 0's weights of a user's blocks go to all processes."""
        if self.world.size > 1:
            for block in self.job.given:
                _broadcast(dict(block.state_dict()))

    def _build(self, layout: Layout) -> list[Stage]:
        """This process's stage, or all of them in one process; no other block is built."""
        mine = range(len(layout.split)) if self.world.size == 1 else [self.world.rank]
        return [
            build_stage(self.config, layout.network, layout.shapes, layout.classes, layout.split, index, self.numerics)
            for index in mine
        ]

    def _show_plan(self, stages: Sequence[Stage], layout: Layout, sizes: Sizes, links: LinkFactory) -> None:
        for stage in stages:
            report_plan(self.control, stage, layout, self.world.threads)
        if self.world.rank == 0:
            job = self.job
            self.display.start(gather_plan(self.control, self.config, layout, sizes, links, job.dataset, job.model))

    def _ends(self, stages: Sequence[Stage], layout: Layout, links: LinkFactory, batches: Batches | None) -> Ends:
        """Where this process's packets come from and go to."""
        source = None if batches is None else packets(batches, self.config).__next__
        if self.world.size > 1:
            return connect_stage(stages[0], layout.shapes, links, self.control, self.config, self.recorder, source)
        assert source is not None
        return Ends(source)

    def _work(self, worker: Worker, folder: RunFolder | None) -> list[EpochRecord]:
        """Train; process 0 watches meanwhile."""
        if self.world.rank != 0:
            worker.run()
            return []
        assert self.config.stages is not None
        monitor = Monitor(self.control, self.config.stages, self.config, self.display, folder)
        monitor.start()
        try:
            worker.run()
            return monitor.finish()
        except BaseException:
            monitor.cancel()
            raise

    def _end_queues(self, ends: Ends) -> None:
        for queue in (ends.sink, ends.gradient_sink):
            if queue is not None:
                queue.close(self.config.timeout)

    def _summarize(
        self, worker: Worker, sizes: Sizes, records: Sequence[EpochRecord], final: FinalState
    ) -> Summary | None:
        report_summary(self.control, worker, self.device)
        if self.world.rank != 0:
            return None
        job = self.job
        return gather_summary(self.control, self.config, sizes, records, final, dataset=job.dataset, model=job.model)

    def _leave_behind(
        self,
        summary: Summary,
        final: FinalState,
        records: Sequence[EpochRecord],
        folder: RunFolder | None,
        layout: Layout,
        sizes: Sizes,
    ) -> None:
        if folder is not None:
            folder.finish(summary, final.weights, records, sizes.shape, sizes.classes)
        names = [spec.name for spec in layout.network]
        self.display.finish(summary, None if folder is None else str(folder.path), names)

    def _result(self, summary: Summary | None, records: Sequence[EpochRecord], final: FinalState) -> TrainResult:
        """Give every process the summary, the epochs and, in a library call, the trained weights."""
        if self.world.size > 1:
            if self.world.rank == 0:
                self.control.publish("finished", True)
            self.control.read("finished", 0)  # writing the run folder may take longer than a transfer may wait
            shared: list[Any] = [(summary, tuple(records))]
            dist.broadcast_object_list(shared, src=0)
            summary, records = shared[0]
        assert summary is not None
        for index, block in enumerate(self.job.given):
            state = dict(block.to("cpu").state_dict())
            if self.world.rank == 0:
                for name, tensor in state.items():
                    tensor.copy_(final.weights[f"{index}.{name}"])
            if self.world.size > 1:
                _broadcast(state)
            block.eval()
        return TrainResult(summary, tuple(records), self.job.given)


def _broadcast(state: dict[str, Tensor]) -> None:
    """Overwrite tensors in every process with process 0's."""
    for tensor in state.values():
        host = tensor.detach().to("cpu").contiguous()
        dist.broadcast(host, src=0)
        tensor.copy_(host)
