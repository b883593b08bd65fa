"""The public call: the same code in one process and, under torchrun, in one process a stage."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.blocks import Block
from pipeline.config import RunConfig, TrainConfig, to_toml
from pipeline.connect import connect_stage
from pipeline.control import Control
from pipeline.costs import block_costs
from pipeline.data import Batches
from pipeline.display import Display, NullDisplay, create_display
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.local import Numerics
from pipeline.metrics import EpochRecord, RunPlan, StagePlan, StageSummary, Summary
from pipeline.models import CUSTOM, BlockShape, Network, given_network, infer_shapes, named_network
from pipeline.monitor import Monitor
from pipeline.partition import arithmetic_costs, balance, members, shares
from pipeline.plots import save_timeline
from pipeline.run_folder import RunFolder
from pipeline.stage import Stage, build_stage
from pipeline.state import FinalState, collect_state
from pipeline.trace import Recorder, spans_from, write_chrome
from pipeline.worker import Ends, Worker, packets
from pipeline.world import LinkFactory, World, connect, reproducible

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
    network: Callable[[tuple[int, ...], int], Network]  # from the shape of an image and the number of classes
    batches: Callable[[torch.device], Batches]
    toml: Callable[[TrainConfig], str]
    given: tuple[Block, ...] = ()


@dataclass(frozen=True)
class _Sizes:
    """What process 0 knows from the data and tells the others."""

    shape: tuple[int, ...]
    classes: int
    train_samples: int
    steps_per_epoch: int


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
        toml=lambda effective: to_toml(effective),
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
        toml=lambda effective: to_toml(_effective(config, effective)),
    )
    return _execute(job, options)


def _effective(config: RunConfig, train_config: TrainConfig) -> RunConfig:
    """The configuration with every automatic value replaced by what it came to."""
    nonlinearity = config.model.nonlinearity
    if nonlinearity == "auto":
        nonlinearity = "leaky_relu" if "sim" in train_config.loss else "relu"
    return replace(config, model=replace(config.model, nonlinearity=nonlinearity), train=train_config)


def _execute(job: _Job, options: Options) -> TrainResult:
    """Connect, run, and turn any failure into the error of the process that failed first."""
    world = connect(job.config)
    display = create_display(options.quiet) if options.show and world.rank == 0 else NullDisplay()
    try:
        device = world.control.together("device choice", lambda: world.choose_device(job.config.device))
        with reproducible(job.config, world.threads, device):
            return _Run(job, options, world, device, display).execute()
    except PipelineError:
        raise
    except torch.OutOfMemoryError as error:
        raise world.control.fail(f"stage {world.rank} ran out of memory: {_first_line(error)}") from error
    except Exception as error:
        world.control.fail(f"stage {world.rank} failed: {type(error).__name__}: {_first_line(error)}")
        raise
    finally:
        display.close()
        world.control.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


class _Run:
    """One run in one process, start to end."""

    def __init__(self, job: _Job, options: Options, world: World, device: torch.device, display: Display) -> None:
        self.job, self.options, self.world, self.device, self.display = job, options, world, device, display
        self.config = job.config
        self.control: Control = world.control
        self.numerics = Numerics(device, job.config.precision)
        self.recorder = Recorder(enabled=options.trace is not None, synchronize=self._synchronizer())

    def execute(self) -> TrainResult:
        """Lay out, build, train, gather."""
        self.control.together("configuration", self._check_configuration)
        folder, batches, sizes = self._open()
        network, shapes = self._network(sizes)
        split, costs = self._split(network, shapes, sizes.classes)
        self.config = replace(self.config, split=split, stages=len(split), threads=self.world.threads)
        if folder is not None:
            folder.write_config(self.job.toml(self.config))
        self._share_given_weights()
        mine = range(len(split)) if self.world.size == 1 else [self.world.rank]
        stages = [
            build_stage(self.config, network, shapes, sizes.classes, split, index, self.numerics) for index in mine
        ]
        links = self.world.links(self.device)
        self._show_plan(stages, network, split, costs, sizes, links)
        ends = self._ends(stages, shapes, links, batches)
        worker = Worker(stages, ends, self.config, self.control, self.recorder)
        records = self._work(worker, len(split), folder)
        summary, final = self._finish(worker, ends, split, records, sizes)
        links.close()
        if folder is not None:
            assert summary is not None
            folder.finish(summary, final.weights, records, sizes.shape, sizes.classes)
        names = [spec.name for spec in network]
        if summary is not None:
            self.display.finish(summary, None if folder is None else str(folder.path), names)
        return self._result(summary, records, final)

    def _synchronizer(self) -> Callable[[], None] | None:
        return (lambda: torch.cuda.synchronize(self.device)) if self.device.type == "cuda" else None

    def _check_configuration(self) -> None:
        """Every process must have been started with the same configuration as process 0."""
        self.config.stage_count(self.world.size)
        mine = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()}
        if self.world.rank == 0:
            self.control.publish("train config", mine)
        theirs = self.control.read("train config", 0)
        for name, value in mine.items():
            if theirs[name] != value:
                raise ConfigError(
                    f"process {self.world.rank} has {name} = {value!r}, but process 0 has {theirs[name]!r}; "
                    "start all processes with the same flags"
                )

    def _open(self) -> tuple[RunFolder | None, Batches | None, _Sizes]:
        """Process 0 opens run folder and data, and tells the others what they need to know."""
        folder, batches = None, None
        if self.world.rank == 0:
            folder, batches = self.control.together("start", self._open_first)
            sizes = _Sizes(tuple(batches.shape), batches.classes, batches.train_samples, batches.steps_per_epoch)
            self.control.publish("sizes", asdict(sizes))
        else:
            self.control.together("start", lambda: None)
        told = self.control.read("sizes", 0)
        return folder, batches, _Sizes(**(told | {"shape": tuple(told["shape"])}))

    def _open_first(self) -> tuple[RunFolder | None, Batches]:
        batches = self.job.batches(self.device)
        trace, output = self.options.trace, self.options.output
        if trace is not None and not Path(trace).parent.is_dir():
            raise ConfigError(f"--trace {trace} cannot be written (no folder {Path(trace).parent}); create it first")
        return None if output is None else RunFolder(output, overwrite=self.options.overwrite), batches

    def _network(self, sizes: _Sizes) -> tuple[Network, list[BlockShape]]:
        def describe() -> tuple[Network, list[BlockShape]]:
            network = self.job.network(sizes.shape, sizes.classes)
            self.config.check_blocks(len(network), self.world.size)
            shapes = infer_shapes(network, sizes.shape)
            scores = shapes[-1].outputs
            if len(scores) != 1 or scores[0] < sizes.classes:
                raise DataError(
                    f"the data has {sizes.classes} classes, but the output layer gives scores of shape "
                    f"{list(scores)}; make it [{sizes.classes}]"
                )
            return network, shapes

        return self.control.together("network", describe)

    def _split(
        self, network: Network, shapes: Sequence[BlockShape], classes: int
    ) -> tuple[tuple[int, ...], list[float]]:
        """Blocks of each stage, and what each block costs, as process 0 found."""
        classes = shapes[-1].outputs[0]
        if self.world.rank == 0:
            stages = self.config.stage_count(self.world.size)
            if self.config.split is None and stages > 1:
                costs, _ = block_costs(self.config, network, shapes, classes, self.numerics)
                split = balance(costs, stages)
            else:
                costs = arithmetic_costs(self.config, shapes, classes)
                split = self.config.split or (len(network),)
            self.control.publish("split", [list(split), costs])
        split_told, costs = self.control.read("split", 0)
        return tuple(split_told), costs

    def _share_given_weights(self) -> None:
        """Process 0's weights of a user's blocks go to all processes."""
        if self.world.size == 1:
            return
        for block in self.job.given:
            _broadcast(dict(block.state_dict()))

    def _ends(
        self, stages: Sequence[Stage], shapes: Sequence[BlockShape], links: LinkFactory, batches: Batches | None
    ) -> Ends:
        """Connect this process to its neighbours after agreeing on what travels."""
        source = None if batches is None else packets(batches, self.config).__next__
        if self.world.size > 1:
            return connect_stage(stages[0], shapes, links, self.control, self.config, self.recorder, source)
        assert source is not None
        return Ends(source)

    def _work(self, worker: Worker, stages: int, folder: RunFolder | None) -> list[EpochRecord]:
        """Train; process 0 watches meanwhile."""
        if self.world.rank != 0:
            worker.run()
            return []
        monitor = Monitor(self.control, stages, self.config, self.display, folder)
        monitor.start()
        try:
            worker.run()
            return monitor.finish()
        except BaseException:
            monitor.cancel()
            raise

    def _show_plan(
        self,
        stages: Sequence[Stage],
        network: Network,
        split: Sequence[int],
        costs: Sequence[float],
        sizes: _Sizes,
        links: LinkFactory,
    ) -> None:
        for stage in stages:
            self.control.publish(f"plan/{stage.index}", self._describe(stage, network, split, costs))
        if self.world.rank != 0:
            return
        owners = range(len(split)) if self.world.size > 1 else [0] * len(split)
        told = [self.control.read(f"plan/{index}", rank) for index, rank in enumerate(owners)]
        plan = RunPlan(
            dataset=self.job.dataset,
            model=self.job.model,
            loss=self.config.loss,
            seed=self.config.seed,
            epochs=self.config.epochs,
            steps_per_epoch=sizes.steps_per_epoch,
            samples_per_epoch=sizes.train_samples,
            batch_size=self.config.batch_size,
            processes=self.world.size,
            transport=links.transport,
            stages=tuple(StagePlan(**(t | {"blocks": tuple(t["blocks"]), "names": tuple(t["names"])})) for t in told),
            notes=tuple(_notes(self.config, self.device, len(split), links)),
        )
        self.display.start(plan)

    def _describe(
        self, stage: Stage, network: Network, split: Sequence[int], costs: Sequence[float]
    ) -> dict[str, Any]:
        indices = members(split)[stage.index]
        return asdict(
            StagePlan(
                rank=self.world.rank,
                device=str(self.device),
                threads=self.world.threads,
                blocks=indices,
                names=tuple(network[i].name for i in indices),
                parameters=sum(block.parameters() for block in stage.blocks),
                parameters_local_heads=sum(block.head_parameters() for block in stage.blocks),
                cost_share=shares(costs, split)[stage.index],
            )
        )

    def _finish(
        self, worker: Worker, ends: Ends, split: Sequence[int], records: Sequence[EpochRecord], sizes: _Sizes
    ) -> tuple[Summary | None, FinalState]:
        for queue in (ends.sink, ends.gradient_sink):
            if queue is not None:
                queue.close(self.config.timeout)
        for stage, clock in zip(worker.stages, worker.clocks, strict=True):
            part = StageSummary(
                rank=self.world.rank,
                device=str(self.device),
                blocks=members(split)[stage.index],
                parameters=sum(block.parameters() for block in stage.blocks),
                busy_fraction=clock.busy_fraction,
                wait_input_s=clock.wait_input_s,
                wait_output_s=clock.wait_output_s,
                peak_memory_bytes=_peak_memory(self.device),
                bytes_sent=sum(q.bytes_sent for q in (ends.sink, ends.gradient_sink) if q is not None),
            )
            heads = sum(block.head_parameters() for block in stage.blocks)
            self.control.publish(f"summary/{stage.index}", [asdict(part), heads, worker.train_seconds])
        final = collect_state(worker.stages, split, self.control)
        self._gather_trace(len(split))
        if self.world.rank != 0:
            return None, final
        return self._summarize(split, records, sizes, final), final

    def _gather_trace(self, stages: int) -> None:
        if self.options.trace is None:
            return
        self.control.publish(f"trace/{self.world.rank}", self.recorder.export())
        if self.world.rank == 0:
            told = [self.control.read(f"trace/{rank}", rank) for rank in range(self.world.size)]
            spans = [span for part in told for span in spans_from(part)]
            names = {index: f"stage {index}" for index in range(stages)}
            write_chrome(self.options.trace, spans, names)
            save_timeline(spans, Path(self.options.trace).with_suffix(".png"))

    def _summarize(
        self, split: Sequence[int], records: Sequence[EpochRecord], sizes: _Sizes, final: FinalState
    ) -> Summary:
        owners = range(len(split)) if self.world.size > 1 else [0] * len(split)
        told = [self.control.read(f"summary/{index}", rank) for index, rank in enumerate(owners)]
        parts = tuple(StageSummary(**(part | {"blocks": tuple(part["blocks"])})) for part, _, _ in told)
        seconds = told[-1][2]
        last = records[-1]
        assert last.test_error_percent is not None and last.block_test_error_percent is not None
        tested = [r.test_error_percent for r in records if r.test_error_percent is not None]
        trained = sizes.steps_per_epoch and _trained_samples(sizes, self.config.batch_size)
        return Summary(
            dataset=self.job.dataset,
            model=self.job.model,
            loss=self.config.loss,
            seed=self.config.seed,
            epochs=self.config.epochs,
            steps=sizes.steps_per_epoch * self.config.epochs,
            batch_size=self.config.batch_size,
            processes=self.world.size,
            stages=len(split),
            threads=self.world.threads,
            parameters=sum(part.parameters for part in parts),
            parameters_local_heads=sum(heads for _, heads, _ in told),
            train_error_percent=last.train_error_percent,
            test_error_percent=last.test_error_percent,
            best_test_error_percent=min(tested),
            block_test_error_percent=last.block_test_error_percent,
            train_seconds=seconds,
            samples_per_second=trained * self.config.epochs / seconds,
            weights_sha256=final.weights_sha256,
            state_sha256=final.state_sha256,
            stage=parts,
            versions={"python": platform.python_version(), "torch": torch.__version__},
        )

    def _result(self, summary: Summary | None, records: Sequence[EpochRecord], final: FinalState) -> TrainResult:
        """Give every process the summary, the epochs and, in a library call, the trained weights."""
        if self.world.size > 1:
            shared: list[Any] = [(summary, tuple(records))]
            dist.broadcast_object_list(shared, src=0)
            summary, records = shared[0]
        assert summary is not None
        for index, block in enumerate(self.job.given):
            block.to("cpu")
            state = dict(block.state_dict())
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


def _trained_samples(sizes: _Sizes, batch_size: int) -> int:
    """Samples of an epoch; a last batch of one is left out."""
    return min(sizes.train_samples, sizes.steps_per_epoch * batch_size)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _notes(config: TrainConfig, device: torch.device, stages: int, links: LinkFactory) -> list[str]:
    """What the user should know at start: the transport, and what the promise of exactness does not cover."""
    notes = [links.note] if links.note else []
    if config.locality == "group" and stages > 1:
        notes.append("--locality group: the split is part of the network; another split gives other weights")
    if config.wire not in ("auto", config.precision) and stages > 1:
        notes.append(f"--wire {config.wire} rounds between stages; another split gives other weights")
    if device.type == "cuda" and not config.deterministic:
        notes.append("without --deterministic a GPU's sums may differ in the last bits from run to run")
    if config.loss.startswith("glob") and stages > 1:
        notes.append(f"{config.loss} is backward-locked: the stages take turns and gradients are sent back")
    return notes
