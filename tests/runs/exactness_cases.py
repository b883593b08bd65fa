"""The cases of the exactness suite. As a script: run those of this world size in this process, write the digests.

python -m tests.runs.exactness_cases OUT.json [NAMES]        under torchrun's variables, once a process
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.environment import environment
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.learning.packet import Packet
from pipeline.learning.stage import Stage
from pipeline.training import Options, run

__all__ = ["CASES", "Case", "execute"]

# 300 samples in batches of 64: four whole ones and a last one of 44.
BASE = RunConfig(
    data=DataConfig(dataset="digits", train_limit=300, test_limit=100, cutout=4),
    model=ModelConfig(model="vgg8b", width=0.125, hidden_units=32, dropout=0.2),
    train=TrainConfig(loss="predsim", epochs=2, batch_size=64, lr=1e-3, decoder_dim=256, threads=1, timeout=30),
)
LONG = RunConfig(
    data=DataConfig(dataset="digits", train_limit=1430, test_limit=60, cutout=3),
    model=ModelConfig(model="mlp", hidden_units=24, hidden_layers=4, dropout=0.1),
    train=TrainConfig(loss="predsim", epochs=7, batch_size=10, threads=1, timeout=30),
)


@dataclass(frozen=True)
class Case:
    """One run: `equals` names the case of one process that must give the same bits."""

    equals: str
    config: RunConfig
    sleepy: int | None = None  # stage that sleeps at random
    trace: bool = False


def vary(config: RunConfig, **values: Any) -> RunConfig:
    """`config` with training values replaced."""
    return replace(config, train=replace(config.train, **values))


def _losses(*names: str) -> dict[str, RunConfig]:
    return {name: vary(BASE, loss=name, beta=None) for name in names}


PLAIN = _losses("pred", "predsim", "predsim-bio", "glob", "glob+predsim") | {
    "cheap head": vary(BASE, similarity_head="pool-4x4"),
    "mlp-sr": vary(BASE, loss="pred", classifier="mlp-sr", label_smoothing=0.1),
    "copy, random start": vary(BASE, classifier="copy", head_start="random"),
    "fast copy": vary(BASE, classifier="fast-copy", norm_bias_lr=2.0, head_lr=0.5),
    "sgd": vary(BASE, optimizer="sgd", momentum=0.9, weight_decay=1e-4, lr=0.05),
    "amsgrad": vary(BASE, optimizer="amsgrad"),
    "fastnet": replace(vary(BASE, classifier="copy"), model=ModelConfig(model="fastnet", width=0.125)),
    "batch norms apart": vary(BASE, loss="pred", norm_momentum=0.6, norm_bias_lr=8.0),
    "cosine": vary(BASE, loss="pred", lr_schedule="cosine", lr_peak=0.3),
    "triangle, nesterov": vary(
        BASE, loss="pred", optimizer="sgd", momentum=0.9, nesterov=True, lr=0.05, lr_schedule="triangle", lr_peak=0.2
    ),
    "muon": vary(
        BASE, optimizer="muon", momentum=None, nesterov=True, weight_decay=0.01, classifier="copy", norm_bias_lr=2.0
    ),
    "head rate": vary(BASE, classifier="mlp-sr", head_lr=0.25, norm_bias_lr=4.0),
    "ema": vary(BASE, ema=0.3),
    "rare evaluation": vary(BASE, loss="pred", epochs=3, eval_every=2),
    "1000 steps": LONG,
}


def _baselines() -> dict[str, Case]:
    cases = {name: Case(name, config) for name, config in PLAIN.items()}
    differ = {
        "other seed": Case("other seed", vary(BASE, seed=2)),
        "other batch size": Case("other batch size", vary(BASE, batch_size=50)),
        "segments 3,5": Case("segments 3,5", vary(BASE, segments=(3, 5))),
        "4 segments": Case("4 segments", vary(BASE, segments=4)),
        "2 segments, cut late": Case("2 segments, cut late", vary(BASE, segments=2, first_cut_after=5)),
        "bf16 wire of 2": Case("bf16 wire of 2", vary(BASE, wire="bf16", split=(4, 4))),
        "bf16 of 2": Case("bf16 of 2", vary(BASE, precision="bf16", split=(4, 4))),
    }
    stages = {
        f"{name}, 3 stages in one process": Case(name, vary(PLAIN[name], stages=3))
        for name in ("pred", "predsim", "predsim-bio", "glob")
    }
    split = {"predsim, split 1,6,1 in one process": Case("predsim", vary(PLAIN["predsim"], split=(1, 6, 1)))}
    return cases | differ | stages | split


CASES: Mapping[int, Mapping[str, Case]] = {
    1: _baselines(),
    2: {
        **{name: Case(name, config) for name, config in PLAIN.items()},
        "predsim, split 1,7, depth 1": Case("predsim", vary(PLAIN["predsim"], split=(1, 7), queue_depth=1)),
        "predsim, split 6,2, depth 2": Case("predsim", vary(PLAIN["predsim"], split=(6, 2), queue_depth=2)),
        "pred, split 7,1, depth 9": Case("pred", vary(PLAIN["pred"], split=(7, 1), queue_depth=9)),
        "pred, stage 1 sleeps": Case("pred", PLAIN["pred"], sleepy=1),
        "predsim, traced": Case("predsim", PLAIN["predsim"], trace=True),
        "glob, split 2,6": Case("glob", vary(PLAIN["glob"], split=(2, 6))),
        "segments 3,5": Case("segments 3,5", vary(BASE, segments=(3, 5))),
        "4 segments": Case("4 segments", vary(BASE, segments=4)),
        "2 segments, cut late": Case("2 segments, cut late", vary(BASE, segments=2, first_cut_after=5)),
        "bf16 wire": Case("bf16 wire of 2", vary(BASE, wire="bf16", split=(4, 4))),
        "bf16": Case("bf16 of 2", vary(BASE, precision="bf16", split=(4, 4))),
    },
    3: {
        **{name: Case(name, PLAIN[name]) for name in ("pred", "predsim", "predsim-bio")},
        "predsim, split 1,1,6, stage 0 sleeps": Case("predsim", vary(PLAIN["predsim"], split=(1, 1, 6)), sleepy=0),
        "predsim-bio, split 2,5,1, depth 1": Case(
            "predsim-bio", vary(PLAIN["predsim-bio"], split=(2, 5, 1), queue_depth=1)
        ),
    },
    4: {
        **{name: Case(name, PLAIN[name]) for name in ("pred", "predsim", "predsim-bio", "glob")},
        "4 segments": Case("4 segments", vary(BASE, segments=4)),
        "predsim, split 2,2,2,2, stage 2 sleeps": Case(
            "predsim", vary(PLAIN["predsim"], split=(2, 2, 2, 2), queue_depth=3), sleepy=2
        ),
        "predsim-bio, stage 3 sleeps, depth 1": Case(
            "predsim-bio", vary(PLAIN["predsim-bio"], queue_depth=1), sleepy=3
        ),
    },
}


@contextmanager
def sleeping(stage_index: int | None) -> Iterator[None]:
    """Let one stage sleep up to 20 ms before every other forward."""
    if stage_index is None:
        yield
        return
    forward, draw = Stage.forward, random.Random(7)

    def sleepy(stage: Stage, packet: Packet) -> Packet:
        if stage.index == stage_index and draw.random() < 0.5:
            time.sleep(0.02 * draw.random())
        return forward(stage, packet)

    Stage.forward = sleepy  # type: ignore[assignment,method-assign]  # a fault injected by the test
    try:
        yield
    finally:
        Stage.forward = forward  # type: ignore[method-assign]  # and taken back


def execute(case: Case) -> dict[str, Any]:
    """Run a case in this process (one of several under torchrun's variables); what must be equal."""
    with tempfile.TemporaryDirectory() as folder, sleeping(case.sleepy):
        trace = str(Path(folder) / "trace.json") if case.trace else None
        result = run(case.config, Options(trace=trace))
    return {
        "state_sha256": result.summary.state_sha256,
        "weights_sha256": result.summary.weights_sha256,
        "errors": [
            [e.train_error_percent, e.test_error_percent, e.block_loss, e.block_test_error_percent]
            for e in result.epochs
        ],
        "steps": result.summary.steps,
    }


if __name__ == "__main__":
    where = environment()
    cases = CASES[where.world_size]
    found = {name: execute(cases[name]) for name in sys.argv[2:] or cases}
    if where.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
