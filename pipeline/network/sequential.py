"""A user's own modules as blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pipeline.config.catalog import CUSTOM
from pipeline.errors import ConfigError
from pipeline.network.blocks import Block, SequentialBlock
from pipeline.network.chain import NotAChain, Piece, chain_of
from pipeline.network.dtypes import check_dtypes
from pipeline.network.kinds import is_layer, is_plain_sequential, is_tail, of_torch, unwrapped
from pipeline.network.proof import same_by_run
from pipeline.network.shadowing import check_names
from pipeline.network.sharing import check_separate, unexpand
from pipeline.network.spec import BlockSpec, Network
from pipeline.settings import plain_settings
from pipeline.text import shown

__all__ = ["CUSTOM", "blocks_from", "given_network"]

_REMEDY = "give blocks_from an nn.Sequential, or train a list of modules, a block each"


@plain_settings()
def blocks_from(network: nn.Module) -> list[Block]:
    """Cut a network into blocks, one at each child that is a layer: that has weights and is not a normalisation.

    What follows such a child belongs to its block, and what comes before the first one to the first block. The local
    loss taps a block before its trailing dropout, pooling and flattening. The last block is the output layer, whose
    result must be class scores. Given weights are kept.

        nn.Sequential     its children, as they are
        any other module  the pieces of its forward (`pipeline.network.chain`), among them calls of functions; children
                          are taken apart in turn, with two exceptions: classes of torch, and modules with a forward of
                          their own whose class is used again, such as residual blocks, unless they chain such modules

    The blocks, one after the other, compute what the network does, to the bit: where its forward is taken apart, a run
    on copies shows it. Wrappers such as `torch.compile` and `DataParallel` are left out.

    Raises:
        ConfigError: the network has no layer, it is not a chain, two blocks share a parameter or buffer, or a method
            of a user's class hides one of torch's.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"blocks_from takes an nn.Module, not a {type(network).__name__}; give it the network")
    network = unwrapped(network)
    check_names(network)
    pieces = _children(network) if is_plain_sequential(network) else _taken_apart(network)
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece.layer and any(each.layer for each in groups[-1]):
            groups.append([])
        groups[-1].append(piece)
    if not any(piece.layer for piece in pieces):
        children = sum(1 for _ in network.children())
        raise ConfigError(f"the network of {children} children has no weights; add a layer such as nn.Linear")
    blocks = [_sequential_block(group, output=group is groups[-1]) for group in groups]
    check_separate(blocks)
    if type(network) is not nn.Sequential and same_by_run(network, blocks) is False:
        raise ConfigError(
            f"{type(network).__name__} cannot be taken apart: its pieces compute something else than it does, as "
            f"where a forward asks for the type of its input; {_REMEDY}"
        )
    return blocks


def _children(sequential: nn.Module) -> list[Piece]:
    # named_children would skip a module used twice
    children = ((name, unwrapped(child)) for name, child in sequential._modules.items() if child is not None)
    return [Piece(name, child, True, is_layer(child), is_tail(child)) for name, child in children]


def _taken_apart(network: nn.Module) -> list[Piece]:
    """The pieces of a module with a forward of its own. Raises ConfigError where it is not a chain of layers."""
    known = isinstance(network, nn.Sequential | DataParallel | DistributedDataParallel)
    if of_torch(network) and not known and type(network).forward is not nn.Module.forward:
        return [Piece("0", network, True, is_layer(network), False)]
    name = type(network).__name__
    try:
        chain = chain_of(network)
    except NotAChain as error:
        raise ConfigError(f"{name} cannot be taken apart: {error}; {_REMEDY}") from error
    layers = [piece for piece in chain.pieces if piece.layer]
    if len(layers) == 1 and layers[0].child and not is_plain_sequential(layers[0].module):
        inner = _taken_apart(layers[0].module)
        return [each for piece in chain.pieces for each in (inner if piece is layers[0] else [piece])]
    if len(layers) == 1 and not layers[0].child and _layers_in(layers[0].module) > 1:
        raise ConfigError(f"the children of {name} do not run one after the other: {chain.hold()}; {_REMEDY}")
    classes = Counter(type(module) for module in network.modules())
    return [each for piece in chain.pieces for each in _opened(piece, classes)]


def _layers_in(module: nn.Module) -> int:
    return sum(is_layer(each) for each in module.modules() if not any(True for _ in each.children()))


def _opened(piece: Piece, classes: Counter[type[nn.Module]]) -> Iterator[Piece]:
    """The pieces of a child, or the child where it is a block as it is."""
    for each in _flat(piece):
        inner = _chained(each, classes) if each.child and each.layer and not of_torch(each.module) else []
        if not inner:
            yield each
        for part in inner:
            yield from _opened(part, classes)


def _flat(piece: Piece) -> Iterator[Piece]:
    """A piece, or where it is an nn.Sequential and nothing more, the pieces in there."""
    if not (piece.child and is_plain_sequential(piece.module)):
        yield piece
        return
    for each in _children(piece.module):
        yield from _flat(each)


def _chained(piece: Piece, classes: Counter[type[nn.Module]]) -> list[Piece]:
    """The pieces of a child with a forward of its own, where these are rather blocks than the child is."""
    try:
        pieces = [each for part in chain_of(piece.module).pieces for each in _flat(part)]
    except NotAChain:
        return []
    layers = [each for each in pieces if each.layer]
    own = [each for each in layers if each.child and not of_torch(each.module)]
    once = classes[type(piece.module)] == 1
    return pieces if len(own) > 1 or (once and len(layers) > 1) else []


def _sequential_block(pieces: Sequence[Piece], output: bool) -> Block:
    tap = len(pieces)
    while not output and pieces[tap - 1].tail:
        tap -= 1
    return SequentialBlock(list(zip(_names(pieces), (piece.module for piece in pieces), strict=True)), tap)


def _names(pieces: Sequence[Piece]) -> list[str]:
    """Names for the children of an nn.Sequential: without dots, each once, none of its own methods."""
    plain = [piece.name.replace(".", "_") for piece in pieces]
    plain = [f"{name}_" if hasattr(nn.Sequential, name) else name for name in plain]
    return [name if name not in plain[:at] else f"{name}_again_{at}" for at, name in enumerate(plain)]


def given_network(blocks: Iterable[nn.Module]) -> Network:
    """Describe blocks that the user built; a plain module becomes a block whose local loss sees its output."""
    blocks = _listed(blocks)
    if not blocks:
        raise ConfigError("the network has no blocks; pass at least one, the output layer")
    for block in blocks:
        check_names(block)
    wrapped = [b if isinstance(b, Block) else SequentialBlock([("0", b)], 1) for b in blocks]
    check_separate(wrapped)
    check_dtypes(wrapped)
    for index, block in enumerate(wrapped):
        unexpand(block)
        if not any(parameter.requires_grad for parameter in block.parameters()):
            raise ConfigError(
                f"block {index} has no parameter that learns; join it to its neighbour, as pipeline.blocks_from does, "
                "or set requires_grad"
            )
    _check_first(wrapped[0])
    return tuple(_given(block, index) for index, block in enumerate(wrapped))


def _listed(blocks: object) -> list[nn.Module]:
    """The modules given as blocks. Raises ConfigError for a network that is not cut yet, and for what is no list."""
    remedy = "give pipeline.blocks_from(network), or a list of modules"
    listing = isinstance(blocks, Iterable) and not isinstance(blocks, str | Mapping | Set)
    if isinstance(blocks, nn.Module):
        listing = is_plain_sequential(blocks) or isinstance(blocks, nn.ModuleList)
    if not listing:
        raise ConfigError(f"blocks is {shown(blocks)}; {remedy}")
    listed = list(cast(Iterable[Any], blocks))
    for index, block in enumerate(listed):
        if not isinstance(block, nn.Module):
            raise ConfigError(f"block {index} is {shown(block)}, which is no nn.Module; {remedy}")
    return listed


def _check_first(block: Block) -> None:
    first = next(each for each in block.modules() if not any(True for _ in each.children()))
    if isinstance(first, nn.Embedding | nn.EmbeddingBag):
        raise ConfigError(
            f"block 0 begins with {type(first).__name__}, but token ids are not supported: what blocks take are "
            "floating-point numbers; look the embeddings up in the data set, or give one-hot vectors to an nn.Linear"
        )


def _given(block: Block, index: int) -> BlockSpec:
    layer = next((m for m in block.modules() if next(m.parameters(recurse=False), None) is not None), block)
    return BlockSpec(f"{type(layer).__name__.lower()} {index}", lambda: block, given=block)
