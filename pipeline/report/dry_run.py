"""`--dry-run`: configuration, split, shapes and cost of each stage, without training."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from pipeline.config.catalog import DATASETS
from pipeline.config.schema import RunConfig
from pipeline.config.toml import to_toml
from pipeline.data.batches import Batches
from pipeline.learning.balance import members
from pipeline.learning.cores import Host
from pipeline.learning.numerics import Numerics
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.agreement import count_segments, decide_split
from pipeline.runtime.cores import seat
from pipeline.text import printable_lines

__all__ = ["dry_run"]


def dry_run(config: RunConfig, world_size: int) -> None:
    """Print what a run of `world_size` processes would be. Reads no data where the data set's shape is known."""
    shape, classes = _sizes(config)
    network = named_network(config.model, shape, classes, config.train.loss)
    shapes = infer_shapes(network, shape)
    train = count_segments(config.train, shapes, world_size)
    hosts = [Host(world_size, seat().count)]
    split, costs, unit = decide_split(train, network, shapes, classes, hosts, Numerics(torch.device("cpu")))
    table = Table(title=f"Stages (cost: {unit})")
    for name in ("stage", "block", "layer", "takes", "hands on", "cost %"):
        table.add_column(name, justify="right" if name in ("stage", "block", "cost %") else "left")
    for stage, blocks in enumerate(members(split)):
        for block in blocks:
            takes, hands = ("x".join(map(str, sides)) for sides in (shapes[block].inputs, shapes[block].outputs))
            share = f"{100 * costs[block] / sum(costs):.1f}"
            table.add_row(str(stage), str(block), network[block].name, takes, hands, share)
        table.add_section()
    console = Console()
    effective = printable_lines(to_toml(replace(config, train=train)), console.encoding)
    with contextlib.suppress(OSError, ValueError, SystemExit):  # nobody listens any more; rich ends the program then
        console.print(effective, markup=False, highlight=False, soft_wrap=True)
        console.print(table)


def _sizes(config: RunConfig) -> tuple[tuple[int, ...], int]:
    info = DATASETS[config.data.dataset]
    if info.shape is not None and info.classes is not None:
        return info.shape, info.classes
    cpu, train = torch.device("cpu"), config.train
    batches = Batches.from_config(config.data, seed=train.seed, batch_size=train.batch_size, device=cpu)
    return tuple(batches.shape), batches.classes
