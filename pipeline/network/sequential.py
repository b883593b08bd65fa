"""A user's own modules as blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pipeline.errors import ConfigError
from pipeline.network.blocks import Block, Dropout, SequentialBlock
from pipeline.network.dtypes import check_dtypes
from pipeline.network.spec import BlockSpec, Network

__all__ = ["CUSTOM", "blocks_from", "given_network"]

CUSTOM = "custom"
"""Model name of a user's own network."""

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_TAIL = (
    Dropout,
    *(nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
    *(nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
    *(nn.Flatten, nn.Identity),
)


def blocks_from(sequential: nn.Sequential) -> list[Block]:
    """Cut a network into blocks, one at each child that has weights and is not a normalisation.

    What follows such a child belongs to its block, and children before the first one to the first block. The local
    loss taps a block before its trailing dropout, pooling and flattening. The last block is the output layer, whose
    result must be class scores. Given weights are kept.

    Raises:
        ConfigError: no child has weights, or two blocks share a parameter.
    """
    groups: list[list[tuple[str, nn.Module]]] = []
    leading: list[tuple[str, nn.Module]] = []
    for name, child in sequential._modules.items():  # named_children would skip a module used twice
        assert child is not None
        if any(True for _ in child.parameters()) and not isinstance(child, _NORMALISATIONS):
            groups.append([*leading, (name, child)])
            leading = []
        else:
            (groups[-1] if groups else leading).append((name, child))
    if not groups:
        raise ConfigError(f"the network of {len(sequential)} children has no weights; add a layer such as nn.Linear")
    blocks = [_sequential_block(group, output=group is groups[-1]) for group in groups]
    _check_shared(blocks)
    return blocks


def _sequential_block(children: list[tuple[str, nn.Module]], output: bool) -> Block:
    tap = len(children)
    while not output and isinstance(children[tap - 1][1], _TAIL):
        tap -= 1
    return SequentialBlock(children, tap)


def _check_shared(blocks: Sequence[nn.Module]) -> None:
    owner: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            first = owner.setdefault(id(parameter), index)
            if first != index:
                raise ConfigError(
                    f"blocks {first} and {index} share the parameter {name}, but every block trains alone; "
                    "give each its own"
                )


def given_network(blocks: Sequence[nn.Module]) -> Network:
    """Describe blocks that the user built; a plain module becomes a block whose local loss sees its output."""
    if not blocks:
        raise ConfigError("the network has no blocks; pass at least one, the output layer")
    wrapped = [b if isinstance(b, Block) else SequentialBlock([("0", b)], 1) for b in blocks]
    _check_shared(wrapped)
    check_dtypes(wrapped)
    for index, block in enumerate(wrapped):
        if not any(parameter.requires_grad for parameter in block.parameters()):
            raise ConfigError(
                f"block {index} has no parameter that learns; join it to its neighbour, or set requires_grad"
            )
    return tuple(_given(block, index) for index, block in enumerate(wrapped))


def _given(block: Block, index: int) -> BlockSpec:
    layer = next((m for m in block.modules() if next(m.parameters(recurse=False), None) is not None), block)
    return BlockSpec(f"{type(layer).__name__.lower()} {index}", lambda: block, given=block)
