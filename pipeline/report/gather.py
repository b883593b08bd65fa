"""What the stages tell process 0 before and after training: the plan, the summary, the trace."""

from __future__ import annotations

import json
import math
import platform
import resource
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import shares
from pipeline.learning.packet import Position
from pipeline.learning.stage import Stage
from pipeline.report.attempt import attempt
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.report.trace import join
from pipeline.report.trace_file import TraceFile
from pipeline.runtime.agreement import Layout, Sizes
from pipeline.runtime.session import Session
from pipeline.runtime.topology import Topology
from pipeline.spans import Recorder
from pipeline.text import json_text
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control
from pipeline.transport.links import Transport
from pipeline.transport.messages import StagePlan, StageSummary
from pipeline.transport.topics import PLANS, SUMMARIES, Topic

__all__ = ["gather_plan", "gather_summary", "gather_trace", "report_plan", "report_summary"]

_TRACE_BYTES = Topic("trace bytes", int)


def report_plan(control: Control, stages: Sequence[Stage], layout: Layout) -> None:
    """Tell process 0 what this process has built."""
    for stage in stages:
        plan = StagePlan(
            rank=control.rank,
            device=str(stage.device),
            threads=layout.threads[control.rank],
            blocks=tuple(block.index for block in stage.blocks),
            names=tuple(layout.network[block.index].name for block in stage.blocks),
            parameters=sum(block.parameters() for block in stage.blocks),
            parameters_local_heads=sum(block.head_parameters() for block in stage.blocks),
            cost_share=shares(layout.costs, layout.split)[stage.index],
        )
        PLANS.publish(control, stage.index, plan)


def gather_plan(
    control: Control,
    config: TrainConfig,
    topology: Topology,
    sizes: Sizes,
    transport: Transport,
    start: Position,
    *,
    dataset: str,
    model: str,
    notes: Sequence[str],
) -> RunPlan:
    """The whole run as laid out, from `start` on, with what is to be noted of its data; in process 0."""
    stages = tuple(PLANS.gather(control, topology.ranks))
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
        transport=transport.value,
        stages=stages,
        samples_before=sizes.samples_before(start, config.batch_size),
        notes=(*notes, *_notes(config, transport, stages)),
    )


def report_summary(stages: Sequence[Stage], session: Session) -> None:
    """Tell process 0 how the stages of this process fared."""
    assert session.ports is not None
    for stage, clock in zip(stages, session.watch.clocks, strict=True):
        part = StageSummary(
            rank=session.control.rank,
            device=str(stage.device),
            threads=torch.get_num_threads(),
            blocks=tuple(block.index for block in stage.blocks),
            parameters=sum(block.parameters() for block in stage.blocks),
            busy_fraction=clock.busy_fraction,
            wait_input_s=clock.wait_input_s,
            wait_output_s=clock.wait_output_s,
            peak_memory_bytes=_peak_memory(stage.device),
            bytes_sent=session.ports.bytes_sent,
        )
        SUMMARIES.publish(session.control, stage.index, part)


def gather_summary(
    control: Control,
    config: TrainConfig,
    plan: RunPlan,
    sizes: Sizes,
    records: Sequence[EpochRecord],
    weights_sha256: str,
    state_sha256: str,
) -> Summary:
    """The whole run in numbers; in process 0."""
    parts = tuple(SUMMARIES.gather(control, [stage.rank for stage in plan.stages]))
    seconds = sum(record.seconds for record in records)  # on the last stage's clock
    samples = sizes.trained_samples(config.batch_size) * config.epochs
    last = records[-1]
    assert last.block_test_error_percent is not None, "the last epoch has an evaluation"
    test_error = last.test_error_percent
    tested = [r.test_error_percent for r in records if r.test_error_percent is not None]
    return Summary(
        dataset=plan.dataset,
        model=plan.model,
        loss=config.loss,
        seed=config.seed,
        epochs=config.epochs,
        steps=sizes.steps_per_epoch * config.epochs,
        batch_size=config.batch_size,
        processes=control.world_size,
        stages=len(plan.stages),
        threads=plan.stages[0].threads,
        parameters=sum(part.parameters for part in parts),
        parameters_local_heads=sum(stage.parameters_local_heads for stage in plan.stages),
        train_error_percent=last.train_error_percent,
        test_error_percent=math.nan if test_error is None else test_error,  # a checkpoint has no word for nan
        best_test_error_percent=min((error for error in tested if not math.isnan(error)), default=math.nan),
        block_test_error_percent=last.block_test_error_percent,
        train_seconds=seconds,
        samples_per_second=samples / seconds if seconds > 0 else math.nan,
        weights_sha256=weights_sha256,
        state_sha256=state_sha256,
        stage=parts,
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
    )


def gather_trace(bulk: Bulk, recorder: Recorder, plan: RunPlan | None, file: TraceFile | None) -> list[str]:
    """Write the spans of all processes; every one that has recorded calls it, process 0 with the plan and the file.

    Comes last, because it is worth less than all else. Returns what the user should know: that some spans did not fit,
    or that there is no trace, and why.
    """
    told: list[dict[str, Any]] = []
    if not recorder.enabled:
        return []
    notes = attempt("the trace", lambda: told.extend(_exchange(bulk, recorder.export())))
    if plan is None or file is None or notes:
        return notes if plan is not None else []
    spans, dropped = join(told), sum(part["dropped"] for part in told)
    if dropped:
        notes.append(f"{file.path} holds the first {len(spans):,} spans; {dropped:,} later ones were left out")
    return notes + file.write(spans, {i: f"stage {i} ({stage.device})" for i, stage in enumerate(plan.stages)})


def _exchange(bulk: Bulk, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What all processes have recorded, in process 0; beside the store, which torchrun keeps in memory."""
    control = bulk.control
    if control.rank > 0:
        text = torch.frombuffer(bytearray(json_text(mine).encode()), dtype=torch.uint8)
        _TRACE_BYTES.publish(control, control.rank, len(text))
        bulk.send(0, [text])
        return []
    told = [mine]
    for rank in range(1, control.world_size):
        text = torch.empty(_TRACE_BYTES.read(control, rank, rank), dtype=torch.uint8)
        bulk.receive(rank, [text])
        told.append(json.loads(text.numpy().tobytes()))
    return told


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _notes(config: TrainConfig, transport: Transport, stages: Sequence[StagePlan]) -> list[str]:
    """What the user should know at start: the transport, and what the promise of exactness does not cover."""
    notes, count = [], len(stages)
    if transport is Transport.PINNED:
        notes.append(f"{count} processes share GPUs, which nccl refuses: activations travel through {transport.value}")
    if count > 1 and config.wire_rounds:
        notes.append(f"--wire {config.wire} rounds between stages; another split gives other weights")
    if stages[0].device != "cpu" and not config.deterministic:
        notes.append("without --deterministic a GPU's sums may differ in the last bits from run to run")
    if count > 1 and config.loss_spec.backpropagates:
        notes.append(f"{config.loss} is backward-locked: the stages take turns and gradients are sent back")
    return notes
