"""Several processes of one run as threads of this one, with links in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import Stage, Trainable, build_stage
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.checkpoint import digest
from pipeline.runtime.session import Session
from pipeline.runtime.siblings import describe
from pipeline.runtime.telemetry import Observer
from pipeline.runtime.topology import Topology
from pipeline.transport.control import Control
from tests.support.memory_link import MemoryLinks

__all__ = ["CLASSES", "SHAPE", "Fleet", "all_at_once", "settings", "state_of"]

T = TypeVar("T")

SHAPE, CLASSES = (3, 8, 8), 3
MODEL = ModelConfig(model="vgg6a", width=0.0625, hidden_units=8)


def settings(loss: str = "predsim", **values: Any) -> TrainConfig:
    """For a network of six blocks."""
    return TrainConfig(loss=loss, batch_size=4, decoder_dim=32, target_projection=8, lr=1e-2, **values)


def state_of(stages: Sequence[Stage]) -> str:
    """A run's `state_sha256`."""
    return digest({n: t for s in stages for block in s.blocks for n, t in block.full_state(s.optimizer).items()})


def all_at_once(acts: Sequence[Callable[[], T]], timeout_s: float = 60) -> list[T]:
    """Let every process act in a thread of its own; their results, or the first one's error."""
    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result(timeout_s) for future in [pool.submit(act) for act in acts]]


class Fleet:
    """The processes of a run, and the stages that each of them has built.

    Args:
        config: of the run.
        split: blocks of each stage.
        processes: one a stage, or one.
        observer: of every process.
        dropout: only for stages that one thread steps: threads share the generator that it draws from.
        store: what they talk over.
    """

    def __init__(
        self,
        config: TrainConfig,
        split: Sequence[int],
        processes: int,
        observer: Observer | None = None,
        dropout: float = 0.0,
        store: Store | None = None,
    ) -> None:
        self.config, self.topology, self.observer = config, Topology.over(split, processes), observer
        self.links = MemoryLinks()
        store = store or HashStore()
        self.controls = [Control(store, rank, processes, config.timeout, describe) for rank in range(processes)]
        network = named_network(replace(MODEL, dropout=dropout), SHAPE, CLASSES, config.loss)
        shapes, numerics = infer_shapes(network, SHAPE), Numerics(torch.device("cpu"))
        self.stages = [
            build_stage(config, network, shapes, CLASSES, split, index, numerics) for index in range(len(split))
        ]

    def sessions(self, stages: Sequence[Trainable] | None = None) -> list[Session]:
        """One for each process, not open."""
        stages = self.stages if stages is None else stages
        return [
            Session(
                [stages[index] for index in self.topology.stages_of(control.rank)],
                self.topology,
                self.config,
                control,
                self.links,
                self.observer,
            )
            for control in self.controls
        ]

    def close(self) -> None:
        """End the heartbeats."""
        for control in self.controls:
            control.close()
