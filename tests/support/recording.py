"""A stand-in for CUDA graphs: it records the operations of a piece of work on a CPU and repeats them in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["StandIn"]

_NOT_PERMITTED = ("aten::_local_scalar_dense", "aten::nonzero")  # those that wait for the device


class _Log(TorchDispatchMode):
    """Operations with their arguments and results, and what memory from before held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.born: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name in _NOT_PERMITTED:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing\nand more")
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.born and storage._cdata not in self.before:
                self.before[storage._cdata] = storage, storage.clone()
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage._cdata not in self.before:
                self.born[storage._cdata] = storage
        self.calls.append((func, args, kwargs, out))
        return out


class StandIn:
    """Keeps the promises of `Graphs`: recording changes nothing, and what it made is there only once it is repeated.

    Attributes:
        records: how often something was recorded, by all of this kind.
        replays: how often something was repeated.
    """

    records = replays = 0

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        log, drawn = _Log(), torch.random.get_rng_state()
        try:
            with log:
                work()
        finally:
            for storage, content in log.before.values():
                storage.copy_(content)
            torch.random.set_rng_state(drawn)
        for storage in log.born.values():
            # wrong, yet no index out of bounds for what is recorded next
            torch.empty(0, dtype=torch.uint8).set_(storage).zero_()
        StandIn.records += 1

        def replay() -> None:
            StandIn.replays += 1
            with torch.no_grad():
                for func, args, kwargs, recorded in log.calls:
                    _into(recorded, func(*args, **kwargs))

        return replay


def _into(recorded: Any, found: Any) -> None:
    """What an operation gave, where it was when it was recorded."""
    for old, new in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
        if isinstance(old, Tensor) and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
            old.copy_(new)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
