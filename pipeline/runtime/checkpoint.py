"""The state of all stages brought together in process 0: digests and the network's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.learning.local_block import LocalBlock
from pipeline.learning.stage import Stage
from pipeline.runtime.topology import Topology
from pipeline.transport.bulk import Bulk
from pipeline.transport.topics import Topic

__all__ = ["collect_state", "digest"]

_STATE = Topic("state", list)


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


def collect_state(stages: Sequence[Stage], topology: Topology, bulk: Bulk) -> tuple[dict[str, Tensor], str]:
    """Bring all blocks to process 0, one block at a time: its inference weights, and the digest of everything.

    Blocks go by their names' sort order ("1." before "10." before "2."), so that one pass makes the digest.
    """
    mine = {block.index: (block, stage.optimizer) for stage in stages for block in stage.blocks}
    weights: dict[str, Tensor] = {}
    everything = hashlib.sha256()
    for index, owner in sorted(topology.owners().items(), key=lambda entry: f"{entry[0]}."):
        if bulk.control.rank == 0:
            for name, tensor, inference in _parts(*mine[index]) if index in mine else _receive(index, owner, bulk):
                everything.update(_digested(name, tensor))
                if inference:
                    weights[name] = tensor
        elif index in mine:
            parts = _parts(*mine[index])
            described = [[name, str(x.dtype).removeprefix("torch."), list(x.shape), kept] for name, x, kept in parts]
            _STATE.publish(bulk.control, index, described)
            bulk.send(0, [tensor for _, tensor, _ in parts])
    return weights, everything.hexdigest()


def _receive(index: int, owner: int, bulk: Bulk) -> list[tuple[str, Tensor, bool]]:
    """A block of another process, as `_parts`."""
    described = _STATE.read(bulk.control, index, owner)
    parts = [(name, torch.empty(shape, dtype=getattr(torch, dtype)), kept) for name, dtype, shape, kept in described]
    bulk.receive(owner, [tensor for _, tensor, _ in parts])
    return parts


def _parts(block: LocalBlock, optimizer: Optimizer) -> list[tuple[str, Tensor, bool]]:
    """A block's state in sorted order: name, CPU tensor, whether it belongs to the inference network."""
    state, inference = block.full_state(optimizer), block.inference_state()
    return [(name, state[name].detach().to("cpu").contiguous(), name in inference) for name in sorted(state)]
