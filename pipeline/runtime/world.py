"""The processes of a run: how they find each other, their devices and threads, the transport between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.config.environment import Environment
from pipeline.config.fields import several
from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.attempts import Attempts
from pipeline.runtime.cores import seat
from pipeline.runtime.devices import device_named
from pipeline.runtime.forked import check_threads
from pipeline.runtime.meeting import place, shared_store
from pipeline.runtime.siblings import describe, stopped
from pipeline.seeding import host_generators_kept
from pipeline.settings import plain_settings
from pipeline.transport.bulk import Bulk
from pipeline.transport.control import Control
from pipeline.transport.links import LinkFactory, Transport
from pipeline.transport.network import check_interfaces
from pipeline.transport.topics import Topic

__all__ = ["World", "connect", "reproducible"]

_HOSTS = Topic("host", str)
_DEVICES = Topic("device", list)
_LEFT = Topic("left", list)

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_LIMIT_S = 30.0  # for the others to come, at least


class World:
    """This process among the others of one run, who share `store`; `hears` is told of the failure that ends it."""

    def __init__(
        self,
        where: Environment,
        config: TrainConfig,
        store: Store,
        hears: Callable[[PipelineError], None] = lambda _: None,
    ) -> None:
        self.rank, self.size = where.rank, where.world_size
        self.attempts = Attempts(store, where.attempt)
        # An attempt has names of its own: it never finds the addresses of one whose processes are dead.
        # Alone there is nobody to talk to, and no store to wait for.
        own = PrefixStore(f"attempt {where.attempt}", store) if self.size > 1 else HashStore()
        self.control = Control(own, where.rank, where.world_size, config.timeout, describe, hears)
        self.bulk = Bulk(self.control)
        self.seat = seat()
        self._given_threads = config.threads_of(self.size)
        self._local_rank = self.rank if where.local_rank is None else where.local_rank
        self._local_size = self.size if where.local_world_size is None else where.local_world_size
        self._where = where

    @property
    def threads(self) -> int:
        """Of this process: as given; else an equal part, until the stages and their shares of the cores are known."""
        return self._given_threads[self.rank] if self._given_threads else max(1, self.seat.count // self._local_size)

    def meet(self, limit_s: float) -> None:
        """Wait for the others, learn who shares this host unless that was said, and check what connects them.

        Raises StageFailure if one does not come within `limit_s` seconds, ConfigError if they cannot connect.
        """
        self.control.meet(limit_s, lambda: stopped(self._where))
        _HOSTS.publish(self.control, self.rank, self.seat.host)
        hosts = _HOSTS.gather(self.control, range(self.size))
        if self._where.local_rank is None:
            self._local_rank = hosts[: self.rank].count(self.seat.host)
        if self._where.local_world_size is None:
            self._local_size = hosts.count(self.seat.host)
        self.control.together("network", lambda: check_interfaces(set(hosts)))

    def choose_device(self, name: str) -> torch.device:
        """The device of this process. Raises ConfigError for a GPU that is not there."""
        return device_named(name, self._local_rank)

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


def connect(config: TrainConfig, hears: Callable[[PipelineError], None] = lambda _: None) -> World:
    """Meet the other processes of this run; in one process there is nobody to meet. For `hears` see `World`.

    Raises:
        ConfigError: variables that are not those of one run, a network interface that is not there, or a fork that
            cannot compute with several threads.
        StageFailure: the others cannot be reached, or do not come.
    """
    if max(several(config.threads or seat().count)) > 1:
        check_threads()
    where = place()
    if where.world_size == 1:
        # What an earlier attempt has begun is known to torchrun's store alone.
        return World(where, config, shared_store(where, _LIMIT_S) if where.outlived else HashStore(), hears)
    limit_s = max(_LIMIT_S, 2 * config.timeout)
    world = World(where, config, shared_store(where, limit_s), hears)
    try:
        world.meet(limit_s)
    except BaseException:
        world.control.close()
        raise
    return world


@contextmanager
def reproducible(config: TrainConfig, threads: int, device: torch.device) -> Iterator[None]:
    """Give a run torch's own settings and `config`'s, and the caller's back afterwards, however it ends.

    Threads, deterministic algorithms and what cuBLAS needs for them, cuDNN's choice, the current GPU, random numbers,
    and all of `plain_settings`. The caller's choice of TF32 counts. Only the allocator's setting stays: it changes no
    result, and cannot be read back.
    """
    keep_freed_memory()
    with ExitStack() as stack:
        if config.deterministic and _CUBLAS not in os.environ:  # without it torch refuses cuBLAS
            os.environ[_CUBLAS] = ":4096:8"
            stack.callback(os.environ.pop, _CUBLAS, None)
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(host_generators_kept(of_torch=False))
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
