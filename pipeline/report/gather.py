"""What the stages tell process 0 before and after training: the plan, the summary, the trace."""

from __future__ import annotations

import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import members, shares
from pipeline.learning.stage import Stage
from pipeline.report.plots import save_timeline
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.report.trace import dropped_in, join, write_chrome
from pipeline.runtime.agreement import Layout, Sizes
from pipeline.runtime.checkpoint import FinalState
from pipeline.runtime.worker import Worker
from pipeline.runtime.world import LinkFactory
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.messages import StagePlan, StageSummary

__all__ = ["gather_plan", "gather_summary", "gather_trace", "report_plan", "report_summary"]


def report_plan(control: Control, stage: Stage, layout: Layout, threads: int) -> None:
    """Tell process 0 what this process has built."""
    indices = members(layout.split)[stage.index]
    plan = StagePlan(
        rank=control.rank,
        device=str(stage.numerics.device),
        threads=threads,
        blocks=indices,
        names=tuple(layout.network[i].name for i in indices),
        parameters=sum(block.parameters() for block in stage.blocks),
        parameters_local_heads=sum(block.head_parameters() for block in stage.blocks),
        cost_share=shares(layout.costs, layout.split)[stage.index],
    )
    control.publish(f"plan/{stage.index}", asdict(plan))


def gather_plan(
    control: Control, config: TrainConfig, layout: Layout, sizes: Sizes, links: LinkFactory, dataset: str, model: str
) -> RunPlan:
    """The whole run as laid out; in process 0."""
    return RunPlan(
        dataset=dataset,
        model=model,
        loss=config.loss,
        seed=config.seed,
        epochs=config.epochs,
        steps_per_epoch=sizes.steps_per_epoch,
        samples_per_epoch=sizes.train_samples,
        batch_size=config.batch_size,
        processes=control.world_size,
        transport=links.transport,
        stages=tuple(
            StagePlan(**(told | {"blocks": tuple(told["blocks"]), "names": tuple(told["names"])}))
            for told in _from_stages(control, "plan", len(layout.split))
        ),
        notes=tuple(_notes(config, links)),
    )


def report_summary(control: Control, worker: Worker, device: torch.device) -> None:
    """Tell process 0 how the stages of this process fared."""
    sinks = [queue for queue in (worker.ends.sink, worker.ends.gradient_sink) if queue is not None]
    for stage, clock in zip(worker.stages, worker.clocks, strict=True):
        part = StageSummary(
            rank=control.rank,
            device=str(device),
            blocks=tuple(block.index for block in stage.blocks),
            parameters=sum(block.parameters() for block in stage.blocks),
            busy_fraction=clock.busy_fraction,
            wait_input_s=clock.wait_input_s,
            wait_output_s=clock.wait_output_s,
            peak_memory_bytes=_peak_memory(device),
            bytes_sent=sum(queue.bytes_sent for queue in sinks),
        )
        heads = sum(block.head_parameters() for block in stage.blocks)
        control.publish(f"summary/{stage.index}", [asdict(part), heads, worker.train_seconds])


def gather_summary(
    control: Control,
    config: TrainConfig,
    sizes: Sizes,
    records: Sequence[EpochRecord],
    final: FinalState,
    *,
    dataset: str,
    model: str,
) -> Summary:
    """The whole run in numbers; in process 0."""
    assert config.stages is not None and config.threads is not None, "the configuration is the effective one"
    told = _from_stages(control, "summary", config.stages)
    parts = tuple(StageSummary(**(part | {"blocks": tuple(part["blocks"])})) for part, _, _ in told)
    seconds = told[-1][2]  # the last stage's clock
    last = records[-1]
    assert last.test_error_percent is not None and last.block_test_error_percent is not None
    return Summary(
        dataset=dataset,
        model=model,
        loss=config.loss,
        seed=config.seed,
        epochs=config.epochs,
        steps=sizes.steps_per_epoch * config.epochs,
        batch_size=config.batch_size,
        processes=control.world_size,
        stages=config.stages,
        threads=config.threads,
        parameters=sum(part.parameters for part in parts),
        parameters_local_heads=sum(heads for _, heads, _ in told),
        train_error_percent=last.train_error_percent,
        test_error_percent=last.test_error_percent,
        best_test_error_percent=min(r.test_error_percent for r in records if r.test_error_percent is not None),
        block_test_error_percent=last.block_test_error_percent,
        train_seconds=seconds,
        samples_per_second=sizes.trained_samples(config.batch_size) * config.epochs / seconds,
        weights_sha256=final.weights_sha256,
        state_sha256=final.state_sha256,
        stage=parts,
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )


def gather_trace(control: Control, recorder: Recorder, stages: int, path: str | None) -> str | None:
    """Write the spans of all processes, and a picture beside them; every process calls it.

    Returns what the user should know: that some spans did not fit, else None.
    """
    if path is None:
        return None
    control.publish(f"trace/{control.rank}", recorder.export())
    if control.rank != 0:
        return None
    told = [control.read(f"trace/{rank}", rank) for rank in range(control.world_size)]
    spans = join(told)
    devices = [plan["device"] for plan in _from_stages(control, "plan", stages)]
    write_chrome(path, spans, {index: f"stage {index} ({device})" for index, device in enumerate(devices)})
    save_timeline(spans, Path(path).with_suffix(".png"))
    dropped = dropped_in(told)
    return f"{path} holds the first {len(spans):,} spans; {dropped:,} later ones were left out" if dropped else None


def _from_stages(control: Control, key: str, stages: int) -> list[Any]:
    """What each stage has published under a key."""
    alone = control.world_size == 1
    return [control.read(f"{key}/{stage}", 0 if alone else stage) for stage in range(stages)]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _notes(config: TrainConfig, links: LinkFactory) -> list[str]:
    """What the user should know at start: the transport, and what the promise of exactness does not cover."""
    assert config.stages is not None
    notes = [links.note] if links.note else []
    if config.locality == "group" and config.stages > 1:
        notes.append("--locality group: the split is part of the network; another split gives other weights")
    if config.wire not in ("auto", "fp32", config.precision) and config.stages > 1:
        notes.append(f"--wire {config.wire} rounds between stages; another split gives other weights")
    if links.on_gpus and not config.deterministic:
        notes.append("without --deterministic a GPU's sums may differ in the last bits from run to run")
    if config.loss_spec.backpropagates and config.stages > 1:
        notes.append(f"{config.loss} is backward-locked: the stages take turns and gradients are sent back")
    return notes
