"""The processes of a run: how they find each other, their devices and threads, the transport between them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from pipeline.config.environment import Environment, environment
from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError, StageFailure, first_line
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.cores import seat
from pipeline.runtime.topology import describe
from pipeline.settings import plain_settings
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control
from pipeline.transport.links import LinkFactory, Transport
from pipeline.transport.topics import Topic

__all__ = ["World", "connect", "reproducible"]

_DEVICES = Topic("device", list)
_LEFT = Topic("left", list)


class World:
    """This process among the others of one run, who share `store`; in one process any store will do."""

    def __init__(self, where: Environment, config: TrainConfig, store: Store) -> None:
        self.rank, self.size = where.rank, where.world_size
        self.control = Control(store, where.rank, where.world_size, config.timeout, describe)
        self.bulk = Bulk(self.control)
        self.seat = seat()
        given = config.threads_of(self.size)
        # Until the stages and their shares of the cores are known, an equal part.
        self.threads = given[self.rank] if given else max(1, self.seat.count // where.local_world_size)
        self._where = where

    def choose_device(self, name: str) -> torch.device:
        """The device of this process. Raises ConfigError for a GPU that is not there."""
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name == "cpu" or (name == "auto" and not available):
            return torch.device("cpu")
        if not available:
            raise ConfigError(f"--device is {name}, but torch {torch.__version__} finds no GPU; use --device cpu")
        index = int(name.partition(":")[2]) if ":" in name else self._where.local_rank % available
        if index >= available:
            raise ConfigError(f"--device is {name}, but this host has {available} GPUs, from cuda:0; name one of them")
        return torch.device("cuda", index)

    def links(self, device: torch.device) -> LinkFactory:
        """Agree with all processes on the transport; raises ConfigError in all if only some have a GPU."""
        transport = self.control.together("transport", lambda: self._choose_transport(device))
        return LinkFactory(self.control, transport, device)

    def _choose_transport(self, device: torch.device) -> Transport:
        _DEVICES.publish(self.control, self.rank, [os.uname().nodename, str(device)])
        places = [tuple(place) for place in _DEVICES.gather(self.control, range(self.size))]
        if len({place[1] == "cpu" for place in places}) > 1:
            raise ConfigError("some processes have a GPU and some have none; give --device cpu, or GPUs everywhere")
        if self.size == 1:
            return Transport.IN_PROCESS
        if device.type == "cpu":
            return Transport.GLOO
        distinct = len(set(places)) == len(places)
        return Transport.NCCL if distinct and dist.is_nccl_available() else Transport.PINNED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the run; process 0 leaves last where it ended well, as its process may host the store."""
        try:
            if kind is None and self.size > 1:
                _LEFT.publish(self.control, self.rank, [])
                if self.rank == 0:
                    _LEFT.gather(self.control, range(self.size))
        finally:
            self.bulk.close()
            self.control.close()


def connect(config: TrainConfig) -> World:
    """Meet the other processes of this run; in one process there is nobody to meet.

    Raises StageFailure if they cannot be reached, or do not come.
    """
    where = environment()
    if where.world_size == 1:
        return World(where, config, HashStore())
    limit_s = max(60.0, 2 * config.timeout)
    world = World(where, config, _shared_store(where, timedelta(seconds=limit_s)))
    try:
        world.control.meet(limit_s)
    except BaseException:
        world.control.close()
        raise
    return world


def _shared_store(where: Environment, limit: timedelta) -> Store:
    """The caller's, if it has a process group; else torchrun's, which ends with the run; else one that process 0 hosts
    as long as it lives."""
    if dist.is_initialized():
        return _get_default_store()  # no public name for the store behind the default group
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return (_meet if hosted else _meet_once)(where.rank, where.world_size, limit)


def _meet(rank: int, world_size: int, limit: timedelta) -> Store:
    try:
        store: Store = next(rendezvous("env://", rank, world_size, timeout=limit))[0]
        return store
    except (RuntimeError, ValueError) as error:
        raise StageFailure(
            f"{describe(rank)} cannot meet the others ({first_line(error)}); start all of them with torchrun"
        ) from error


_meet_once = functools.cache(_meet)


@contextmanager
def reproducible(config: TrainConfig, threads: int, device: torch.device) -> Iterator[None]:
    """Give a run torch's own settings and `config`'s, and the caller's back afterwards, however it ends.

    Threads, deterministic algorithms, cuDNN's choice, the current GPU, random numbers, and all of `plain_settings`.
    The caller's choice of TF32 counts. Only the allocator's setting stays: it changes no result, and cannot be read
    back.
    """
    keep_freed_memory()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(plain_settings())
        strict, warns = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        stack.callback(torch.use_deterministic_algorithms, strict, warn_only=warns)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        torch.use_deterministic_algorithms(config.deterministic)
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = not config.deterministic
        yield
