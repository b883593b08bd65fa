"""The state of all stages brought together in process 0: digests, the network's weights, the local classifiers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.learning.local_block import LocalBlock
from pipeline.learning.stage import Stage
from pipeline.runtime.topology import Topology
from pipeline.transport.bulk import Bulk
from pipeline.transport.topics import Topic

__all__ = ["Collected", "collect_state", "digest"]

_STATE = Topic("state", list)

_WEIGHTS, _EXITS = "weights", "exits"  # what a tensor is kept for; empty where only the digest has it

_Part = tuple[str, Tensor, str, str]
"""Of a block's state: name, CPU tensor, what it is kept for, and by which name."""


@dataclass(frozen=True)
class Collected:
    """What process 0 has of all blocks at the end of a run; the others have nothing of it.

    Attributes:
        weights: of the network, by `<block index>.<name>`.
        exits: what the local classifiers need to answer, likewise.
        sha256: digest of everything that training has changed or drawn.
    """

    weights: Mapping[str, Tensor]
    exits: Mapping[str, Tensor]
    sha256: str


def _digested(name: str, tensor: Tensor) -> bytes:
    """Name, dtype, shape and raw little-endian bytes of a tensor; its memory layout does not matter."""
    x = tensor.detach().to("cpu").contiguous()
    dtype, shape = str(x.dtype).removeprefix("torch."), ",".join(map(str, x.shape))
    return f"{name}\0{dtype}\0{shape}\0".encode() + x.reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors over sorted names."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(_digested(name, tensors[name]))
    return sha256.hexdigest()


def collect_state(stages: Sequence[Stage], topology: Topology, bulk: Bulk) -> Collected:
    """Bring all blocks to process 0, one block at a time: what is kept of it, and the digest of everything.

    Blocks go by their names' sort order ("1." before "10." before "2."), so that one pass makes the digest.
    """
    mine = {block.index: (block, stage.optimizer) for stage in stages for block in stage.blocks}
    kept: dict[str, dict[str, Tensor]] = {_WEIGHTS: {}, _EXITS: {}}
    everything = hashlib.sha256()
    for index, owner in sorted(topology.owners().items(), key=lambda entry: f"{entry[0]}."):
        if bulk.control.rank == 0:
            for name, tensor, purpose, key in _parts(*mine[index]) if index in mine else _receive(index, owner, bulk):
                everything.update(_digested(name, tensor))
                if purpose:
                    kept[purpose][key] = tensor
        elif index in mine:
            parts = _parts(*mine[index])
            described = [[name, str(x.dtype).removeprefix("torch."), list(x.shape), *why] for name, x, *why in parts]
            _STATE.publish(bulk.control, index, described)
            bulk.send(0, [tensor for _, tensor, *_ in parts])
    return Collected(kept[_WEIGHTS], kept[_EXITS], everything.hexdigest())


def _receive(index: int, owner: int, bulk: Bulk) -> list[_Part]:
    """A block of another process, as `_parts`."""
    described = _STATE.read(bulk.control, index, owner)
    parts: list[_Part] = [
        (name, torch.empty(shape, dtype=getattr(torch, dtype)), why, key) for name, dtype, shape, why, key in described
    ]
    bulk.receive(owner, [tensor for _, tensor, *_ in parts])
    return parts


def _parts(block: LocalBlock, optimizer: Optimizer) -> list[_Part]:
    """A block's state in sorted order."""
    state = block.full_state(optimizer)
    kept = {block.source(name, head=True): (_EXITS, name) for name in block.classifier_state()}
    kept |= {block.source(name): (_WEIGHTS, name) for name in block.inference_state()}
    return [(name, state[name].detach().to("cpu").contiguous(), *kept.get(name, ("", ""))) for name in sorted(state)]
