"""The state of all stages brought together in process 0: digests and the network's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.learning.balance import members
from pipeline.learning.local_block import LocalBlock
from pipeline.learning.stage import Stage
from pipeline.transport.control import Control

__all__ = ["Digest", "FinalState", "collect_state", "digest"]


class Digest:
    """SHA-256 over tensors: name, dtype, shape and raw little-endian bytes of each, in the order given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor; its memory layout does not matter."""
        x = tensor.detach().to("cpu").contiguous()
        dtype, shape = str(x.dtype).removeprefix("torch."), ",".join(map(str, x.shape))
        self._hash.update(f"{name}\0{dtype}\0{shape}\0".encode())
        self._hash.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())

    def hex(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors over sorted names."""
    result = Digest()
    for name in sorted(tensors):
        result.add(name, tensors[name])
    return result.hex()


class FinalState:
    """What process 0 knows at the end; the other processes hold empty weights."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}  # of the inference network
        self.state_sha256 = ""

    @property
    def weights_sha256(self) -> str:
        """Digest of the inference network."""
        return digest(self.weights)


def collect_state(stages: Sequence[Stage], split: Sequence[int], control: Control) -> FinalState:
    """Bring all blocks to process 0, one block at a time: digest everything, keep the inference weights.

    Blocks go by their names' sort order ("1." before "10." before "2."), so that one pass makes the digest.
    """
    mine = {block.index: block for stage in stages for block in stage.blocks}
    alone = control.world_size == 1
    owners = {i: 0 if alone else rank for rank, blocks in enumerate(members(split)) for i in blocks}
    result, everything = FinalState(), Digest()
    for index in sorted(owners, key=lambda i: f"{i}."):
        if owners[index] == control.rank:
            _publish(mine[index], control)
        if control.rank == 0:
            for name, tensor, inference in _receive(index, owners[index], mine.get(index), control):
                everything.add(name, tensor)
                if inference:
                    result.weights[name] = tensor
    result.state_sha256 = everything.hex()
    return result


def _publish(block: LocalBlock, control: Control) -> None:
    """Send a block's state to process 0, its description first."""
    if control.rank == 0:
        return
    tensors = _tensors(block)
    described = [[name, str(x.dtype).removeprefix("torch."), list(x.shape), kept] for name, x, kept in tensors]
    control.publish(f"state/{block.index}", described)
    control.read(f"collect/{block.index}", 0)  # process 0 may still wait for a slower stage
    for _, tensor, _ in tensors:
        dist.send(tensor, 0)


def _receive(index: int, owner: int, own: LocalBlock | None, control: Control) -> list[tuple[str, Tensor, bool]]:
    """A block's state in sorted order: name, CPU tensor, whether it belongs to the inference network."""
    if own is not None:
        return _tensors(own)
    control.publish(f"collect/{index}", True)
    received = []
    for name, dtype, shape, inference in control.read(f"state/{index}", owner):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.recv(tensor, owner)
        received.append((name, tensor, inference))
    return received


def _tensors(block: LocalBlock) -> list[tuple[str, Tensor, bool]]:
    """What `_receive` returns, of a block of this process."""
    state, inference = block.full_state(), block.inference_state()
    return [(name, state[name].detach().to("cpu").contiguous(), name in inference) for name in sorted(state)]
