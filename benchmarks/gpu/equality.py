"""Whether captured steps, plain steps and all placements come to the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import summarize
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Row, Target, at_most
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override
from pipeline.training import Options, run

__all__ = ["CASES", "Placement", "measure", "placements"]

# Two full batches more than are plain before the first is captured, and a smaller one.
_DATA = DataConfig(dataset="synthetic", train_limit=5 * 32 + 8, test_limit=40)
_BASE = RunConfig(
    data=_DATA,
    model=ModelConfig(model="vgg8b", width=0.25, dropout=0.1),
    train=TrainConfig(batch_size=32, decoder_dim=512, epochs=2, lr_milestones=(1,), deterministic=True),
)
CASES: Mapping[str, Mapping[str, Any]] = {
    "predsim": {},
    "predsim, bf16": {"precision": "bf16"},
    "pred, sgd": {"loss": "pred", "optimizer": "sgd", "momentum": 0.9},
    "predsim, pool-4x4": {"similarity_head": "pool-4x4"},
    "predsim-bio": {"loss": "predsim-bio"},
    "predsim, two blocks a segment": {"segments": (2, 2, 2, 2)},
    "glob": {"loss": "glob"},
}
"""What is trained, by fields of the configuration."""


@dataclass(frozen=True)
class Placement:
    """Where and how the same training runs."""

    processes: int
    split: tuple[int, ...]
    capture: str

    @property
    def label(self) -> str:
        """In words."""
        form = "captured" if self.capture == "auto" else "plain"
        return f"{self.processes} processes, {len(self.split)} stages, {form}"


def placements(quick: bool) -> list[Placement]:
    """One process with one stage and with several, and several processes; plain and captured."""
    halves, quarters = (4, 4), (2, 2, 2, 2)  # given, so that no time goes into measuring what blocks cost
    shapes = [(1, (8,)), (2, halves)] if quick else [(1, (8,)), (1, quarters), (2, halves), (4, quarters)]
    return [Placement(processes, split, capture) for processes, split in shapes for capture in ("off", "auto")]


def measure(quick: bool) -> tuple[list[Row], list[Target]]:
    """A row for each case, whose figure is how many different digests its placements had: 1 is wanted."""
    cases = dict(list(CASES.items())[:2] if quick else CASES.items())
    found: dict[str, dict[str, str]] = {name: {} for name in cases}
    every = placements(quick)
    for size in shown(sorted({placement.processes for placement in every}), "numbers of processes"):
        with Crew(size) as crew:
            for placement in (one for one in every if one.processes == size):
                for name, changes in cases.items():
                    found[name][placement.label] = crew.call(_digest, placement, changes)[0]
    transport = "nccl" if torch.cuda.device_count() >= 2 else "gloo through pinned memory"
    rows = [_row(name, digests, transport) for name, digests in found.items()]
    return rows, [
        at_most(f"different weights of all placements, {name}", 1, row.figures["digests"])
        for name, row in zip(found, rows, strict=True)
    ]


def _digest(member: Member, placement: Placement, changes: Mapping[str, Any]) -> str:
    """`state_sha256` of a run."""
    given = {"split": placement.split, "capture": placement.capture, "threads": member.threads}
    return run(override(_BASE, {**changes, **given}), Options()).summary.state_sha256


def _row(name: str, digests: Mapping[str, str], transport: str) -> Row:
    settings: dict[str, Sequence[str] | str | Mapping[str, str]] = {"transport": transport, "state_sha256": digests}
    return Row(f"same bits, {name}", settings, {"digests": summarize([float(len(set(digests.values())))])})
