"""Blocks through torch.compile, each by itself: what comes of a block does not depend on those around it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

from pipeline.errors import ConfigError

__all__ = ["check_compiler", "compiled"]

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T], name: str) -> Callable[P, T]:
    """`function`, compiled for fixed shapes at its first call.

    torch keeps what it has compiled by code object, and makes it more general, or gives up, as more shapes come by.
    Blocks share their code: with a code object of its own under each `name` no block knows of another.
    """

    def own(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    own.__code__ = own.__code__.replace(co_name=name)
    return cast(Callable[P, T], torch.compile(own, dynamic=False))


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError unless torch.compile finds what it needs: a C++ compiler, and Triton for a GPU."""
    names = (os.environ.get("CXX", "g++"), "g++", "c++", "clang++")
    if not any(shutil.which(name) for name in names):
        raise ConfigError("--compile needs a C++ compiler, and there is none; install g++, or leave --compile out")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("--compile needs Triton for a GPU, and there is none; install it, or leave --compile out")
