"""Names of a user's classes that hide what torch calls on every module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from pipeline.errors import ConfigError
from pipeline.network.kinds import of_torch

__all__ = ["check_names"]

_CALLED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("eval", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict"), ()),
    **dict.fromkeys(("modules", "named_modules", "children", "named_children", "zero_grad"), ()),
    "train": (True,),
    "to": ("cpu",),
    "requires_grad_": (True,),
    "load_state_dict": ({},),
    "apply": (id,),
}
"""Methods that we or torch call on a user's modules, and with what."""


def check_names(module: nn.Module) -> None:
    """Raise ConfigError if a method or attribute of a module, or of one below, cannot be called as torch's own is."""
    for each in _all(module, set()):
        for name, arguments in _CALLED.items():
            own = getattr(each, name)
            if not _takes(own, arguments):
                theirs = f"torch's Module.{name}{_parameters(getattr(nn.Module, name))}"
                mine = f"{type(each).__name__}.{name}{_parameters(own) if callable(own) else ''}"
                raise ConfigError(f"{mine} hides {theirs}, which training calls; give it another name")


def _all(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Modules of a user's own classes, found without their methods."""
    if id(module) in seen:
        return
    seen.add(id(module))
    if not of_torch(module):
        yield module
    for child in module._modules.values():
        if child is not None:
            yield from _all(child, seen)


def _takes(method: Any, arguments: tuple[Any, ...]) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # no signature is known, as of some built-in functions
        return True
    return True


def _parameters(method: Callable[..., Any]) -> str:
    return f"({', '.join(name for name in inspect.signature(method).parameters if name != 'self')})"
