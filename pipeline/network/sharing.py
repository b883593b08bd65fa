"""What the tensors of a user's blocks share, and whether they can be kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError

__all__ = ["check_separate", "unexpand"]

_Extent = tuple[int, int, int, str]
"""First byte of a tensor, the byte behind its last, its block, what it is called."""


def check_separate(blocks: Sequence[nn.Module]) -> None:
    """Raise ConfigError unless every block's parameters and buffers are its own, and all its state plain tensors.

    Inside a block tensors may share memory.
    """
    for index, block in enumerate(blocks):
        _check_plain(index, block)
        _check_own(index, block)
    memories: dict[tuple[torch.device, int], list[_Extent]] = defaultdict(list)
    for index, block in enumerate(blocks):
        for name, tensor in _tensors(block):
            start, storage = tensor.data_ptr(), tensor.untyped_storage().data_ptr()
            memories[tensor.device, storage].append((start, start + _span_bytes(tensor), index, name))
    for extents in memories.values():
        _check_apart(extents)


def unexpand(block: nn.Module) -> None:
    """Give what was made by `expand`, and has one number in several places, a place for each: nothing can be copied
    into it else. Conjugates that wait to be worked out, whose bytes cannot be read, are worked out.

    Raises ConfigError for an expanded parameter that learns.
    """
    for prefix, module in block.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or is_lazy(tensor) or tensor.layout != torch.strided:
                continue
            if not (_is_expanded(tensor) or tensor.is_conj() or tensor.is_neg()):
                continue
            if tensor.requires_grad:
                raise ConfigError(
                    f"the parameter {prefix}{'.' if prefix else ''}{name} has been expanded, so that its elements are "
                    "one, and cannot learn; clone it, or expand it in forward"
                )
            plain = tensor.detach().resolve_conj().resolve_neg()
            tensor.data = plain.clone(memory_format=torch.contiguous_format)


def _check_plain(index: int, block: nn.Module) -> None:
    for name, value in block.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            what = type(value).__name__ if not isinstance(value, Tensor) else str(value.layout).replace("torch.", "")
            raise ConfigError(
                f"block {index} keeps {name}, which is of the kind {what}; only plain tensors can be kept with the "
                "weights: make it one, or leave it out of the state"
            )


def _check_own(index: int, block: nn.Module) -> None:
    """Raise ConfigError unless the state is the block's own tensors: what is loaded or sent is copied into them."""
    state, again = block.state_dict(), block.state_dict()
    own = dict((*block.named_buffers(remove_duplicate=False), *block.named_parameters(remove_duplicate=False)))
    for name, value in state.items():
        kept = again[name] if name.endswith("_extra_state") else own.get(name)
        if kept is None or not (is_lazy(value) or kept.data_ptr() == value.data_ptr()):
            raise ConfigError(
                f"block {index} keeps {name}, which is no tensor of its own, as where a hook changes what state_dict "
                "gives; leave the hook out while training"
            )
    missing = [name for name, _ in block.named_parameters() if name not in state]
    if missing:
        raise ConfigError(
            f"block {index} leaves the parameter {missing[0]} out of its state, so that it could not be kept; leave "
            "the hook that does so out while training"
        )


def _tensors(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that have memory of one piece, as sparse ones have not, by what they are called."""
    for kind, named in (("parameter", block.named_parameters()), ("buffer", block.named_buffers())):
        for name, tensor in named:
            if not is_lazy(tensor) and not tensor.is_meta and tensor.layout == torch.strided and tensor.numel():
                yield f"{kind} {name}", tensor


def _span_bytes(tensor: Tensor) -> int:
    """Bytes from its first element to behind its last, those between that are not its own included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _check_apart(extents: Sequence[_Extent]) -> None:
    """Of one piece of memory."""
    seen: list[_Extent] = []
    for start, end, block, name in extents:
        for first_start, first_end, first, _ in seen:
            if first != block and start < first_end and first_start < end:
                raise ConfigError(
                    f"blocks {first} and {block} share the {name}, but every block trains alone; give each its own"
                )
        seen.append((start, end, block, name))


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
