"""A run goes on: what process 0 has read of a checkpoint, in the stages of all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pipeline.config.toml import from_toml
from pipeline.errors import ConfigError, DataError, PipelineError, first_line
from pipeline.learning.stage import Stage
from pipeline.runtime.checkpoint_files import Checkpoint, newest
from pipeline.runtime.saver import by_block
from pipeline.runtime.topology import Topology
from pipeline.runtime.weights_file import read_weights
from pipeline.transport.bulk import Bulk

__all__ = ["checkpoint_of", "load_stages", "load_weights", "split_of", "weights_of"]

ReadBlock = Callable[[int], Mapping[str, Tensor]]


def checkpoint_of(folder: str | Path, *, required: bool) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint of a run folder, and why newer ones were passed over.

    Raises DataError if there is none and it is `required`.
    """
    found, passed = newest(Path(folder) / "checkpoints")
    if found is None and required:
        why = f" ({'; '.join(passed)})" if passed else ""
        raise DataError(
            f"--resume {folder} holds no complete checkpoint{why}; give the folder of a run that has saved"
        )
    return found, passed


def split_of(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """The split of the run that has saved it; None where it does not say, of which others tell."""
    try:
        return from_toml(checkpoint.about["config"], source=str(checkpoint.path)).train.split
    except (PipelineError, KeyError, TypeError, AttributeError):
        return None


def load_stages(
    stages: Sequence[Stage],
    topology: Topology,
    bulk: Bulk,
    read: ReadBlock | None,
    where: str,
    readers: Sequence[int] = (),
) -> None:
    """Let the stages of this process go on from the state of their blocks.

    `read` gives that, in process 0; where there are `readers`, in the one of each block.

    Raises ConfigError, in all processes, if a block is another one than was saved.
    """
    found = _handed_out(topology, bulk, read, readers)

    def load() -> None:
        for stage in stages:
            _check_fits(stage.state_dict(), found, where)
        for stage in stages:
            stage.load_state_dict(found)

    bulk.control.together("resume", load)


def load_weights(stages: Sequence[Stage], topology: Topology, bulk: Bulk, read: ReadBlock | None, where: str) -> None:
    """Begin with given weights and buffers of the blocks; local heads and optimizers start anew. Raises as above."""
    found = _handed_out(topology, bulk, read)

    def load() -> None:
        blocks = [block for stage in stages for block in stage.blocks]
        for block in blocks:
            _check_fits(block.inference_state(), found, where)
        for block in blocks:
            own = by_block(found)[block.index]
            block.block.load_state_dict({name.partition(".")[2]: tensor for name, tensor in own.items()})

    bulk.control.together("init", load)


def weights_of(file: str) -> dict[int, dict[str, Tensor]]:
    """The weights of a `model.safetensors`, by block. Raises DataError where it is none."""
    try:
        return by_block(read_weights(Path(file)).tensors)
    except (DataError, ValueError) as error:
        raise DataError(f"--init-from {file} is no model.safetensors of a run: {first_line(error)}") from error


def _check_fits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in wanted.items():
        shape = list(found[name].shape) if name in found else None
        if shape != list(tensor.shape):
            kept = "does not hold it" if shape is None else f"holds it with shape {shape}"
            raise ConfigError(
                f"{where} is of another network: {name} has shape {list(tensor.shape)} now, {where} {kept}; build the "
                "network that was saved"
            )


def _handed_out(
    topology: Topology, bulk: Bulk, read: ReadBlock | None, readers: Sequence[int] = ()
) -> dict[str, Tensor]:
    """The tensors of this process's blocks, block by block, by way of process 0 from who reads it."""
    rank, mine = bulk.control.rank, dict[str, Tensor]()
    for index, owner in sorted(topology.owners().items()):
        reader, name = readers[index] if readers else 0, f"block/{index}"
        tensors: Mapping[str, Tensor] = {}
        if rank == reader:
            assert read is not None, "it reads"
            tensors = read(index)
        if reader not in {0, owner}:
            if rank == reader:
                bulk.send_named(0, f"{name}/read", tensors)
            elif rank == 0:
                tensors = bulk.receive_named(reader, f"{name}/read")
        if owner not in {0, reader}:
            if rank == 0:
                bulk.send_named(owner, name, tensors)
            elif rank == owner:
                tensors = bulk.receive_named(0, name)
        if rank == owner:
            mine |= tensors
    return mine
