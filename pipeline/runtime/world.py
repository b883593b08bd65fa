"""The processes of a run: how they find each other, their devices and threads, the links between neighbours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from pipeline.config.environment import Environment, environment
from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.transport.control import Control
from pipeline.transport.links import GlooLink, Link, NcclLink, PinnedLink

__all__ = ["LinkFactory", "World", "connect", "default_threads", "reproducible"]

# gloo and nccl end a transfer by themselves after this; a lost peer is noticed long before, by its heartbeat.
_TRANSFER_LIMIT = timedelta(days=1)


def default_threads(local_world_size: int) -> int:
    """CPU threads of each process: the cores of this host shared out, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


class World:
    """This process among the others of one run.

    Args:
        where: rank and counts.
        config: device, threads, timeout.
        store: shared by the processes; in one process any store.
    """

    def __init__(self, where: Environment, config: TrainConfig, store: Store) -> None:
        self.rank, self.size = where.rank, where.world_size
        self.control = Control(store, where.rank, where.world_size, config.timeout)
        self.threads = config.threads or default_threads(where.local_world_size)
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
        return self.control.together("transport", lambda: self._choose_transport(device))

    def _choose_transport(self, device: torch.device) -> LinkFactory:
        host = os.uname().nodename
        self.control.publish(f"device/{self.rank}", [host, str(device)])
        places = [tuple(self.control.read(f"device/{rank}", rank)) for rank in range(self.size)]
        on_gpus = all(place[1] != "cpu" for place in places)
        if len({place[1] == "cpu" for place in places}) > 1:
            raise ConfigError("some processes have a GPU and some have none; give --device cpu, or GPUs everywhere")
        return LinkFactory(self, device, on_gpus, distinct=len(set(places)) == len(places))


class LinkFactory:
    """Makes the links between neighbours; every process calls `edge` for every edge in the same order."""

    def __init__(self, world: World, device: torch.device, on_gpus: bool, *, distinct: bool) -> None:
        self._world, self._device = world, device
        self.on_gpus = on_gpus
        self._nccl = on_gpus and distinct and dist.is_nccl_available()
        self._pinned = on_gpus and not self._nccl
        self._groups: list[dist.ProcessGroup] = []

    @property
    def transport(self) -> str:
        """In words, for the start of the run."""
        if self._world.size == 1:
            return "in process"
        if self._nccl:
            return "nccl"
        return "gloo through pinned host memory" if self._pinned else "gloo"

    @property
    def note(self) -> str | None:
        """A line for the user where the transport is not the fastest one."""
        if not self._pinned:
            return None
        return (
            f"{self._world.size} processes share GPUs, which nccl refuses: activations travel through gloo and pinned "
            "host memory"
        )

    def edge(self, source: int, target: int) -> Link | None:
        """This process's end of a one-way link, or None if it has no end of it."""
        headers = self._group("gloo", source, target)
        payloads = self._group("nccl", source, target) if self._nccl else None
        if headers is None:
            return None
        peer = target if self._world.rank == source else source
        if payloads is not None:
            return NcclLink(headers, payloads, peer, self._device)
        return PinnedLink(headers, peer, self._device) if self._pinned else GlooLink(headers, peer)

    def _group(self, backend: str, source: int, target: int) -> dist.ProcessGroup | None:
        """A group of the two; every process has to call this, and gets None if it is neither of them."""
        group = dist.new_group(sorted((source, target)), timeout=_TRANSFER_LIMIT, backend=backend)
        if not isinstance(group, dist.ProcessGroup):
            return None
        self._groups.append(group)
        return group

    def close(self) -> None:
        """Give the groups back after a run that ended well; after a failure they may hang, and are left."""
        for group in self._groups:
            dist.destroy_process_group(group)
        self._groups.clear()


def connect(config: TrainConfig) -> World:
    """Meet the other processes of this run; in one process there is nobody to meet.

    A process may train several times: each run gets keys of its own in the store that the processes share.
    """
    where = environment()
    if where.world_size == 1:
        return World(where, config, HashStore())
    if not dist.is_initialized():
        limit = timedelta(seconds=max(60.0, 2 * config.timeout))
        dist.init_process_group("gloo", timeout=limit)
    store = _get_default_store()  # no public name for the store behind the default group
    run = store.add(f"runs of process {where.rank}", 1)
    return World(where, config, PrefixStore(f"run{run}", store))


@contextmanager
def reproducible(config: TrainConfig, threads: int, device: torch.device) -> Iterator[None]:
    """Set threads, deterministic algorithms and cuDNN for a run, keep the caller's random numbers, restore all.

    Only the allocator's setting stays: it changes no result, and cannot be read back.
    """
    keep_freed_memory()
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    devices = [device] if device.type == "cuda" else []
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with torch.random.fork_rng(devices=devices):
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(config.deterministic)
        torch.backends.cudnn.benchmark = not config.deterministic
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])
            torch.backends.cudnn.benchmark = before[2]
