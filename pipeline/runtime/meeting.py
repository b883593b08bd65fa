"""How the processes of a run find each other: the place of this one, and the store that all of them share."""

from __future__ import annotations

import functools
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import Store, _get_default_store

from pipeline.config.environment import Environment, environment, environment_of_group
from pipeline.errors import ConfigError, PipelineError, StageFailure, first_line
from pipeline.runtime.siblings import describe

__all__ = ["place", "shared_store"]

_PRESENT_S = 20.0  # within which a store answers that torchrun has started, and a name is known
_POLL_S = 0.1


def place() -> Environment:
    """This process among the others: by the caller's process group, if it has one, else by the environment.

    Raises ConfigError if the variables are not those of one run, or contradict the group.
    """
    if dist.is_initialized():
        return environment_of_group(dist.get_rank(), dist.get_world_size())
    where = environment()
    where.check()
    return where


def shared_store(where: Environment, limit_s: float) -> Store:
    """The caller's, if it has a process group; else torchrun's, which outlives the processes; else one that process 0
    hosts as long as it lives.

    Raises:
        ConfigError: a host that is not known, or a process group that has no store.
        StageFailure: nobody answers there within `limit_s` seconds.
    """
    if dist.is_initialized():
        return _store_of_group(where)
    return (_meet if where.agent_store else _meet_once)(where, limit_s)


def _store_of_group(where: Environment) -> Store:
    """That of the caller's process group, which keeps what it is given: MPI's has none, a fake one forgets."""
    store: Store | None = _get_default_store()  # there is no public name for it
    if store is not None and _keeps(store, f"pipeline/{where.rank}"):
        return store
    raise ConfigError(
        f"the process group of {where.world_size} processes ({dist.get_backend()}) has no store in which they could "
        "meet; make one of gloo or nccl, or destroy it to train in one process"
    )


def _keeps(store: Store, name: str) -> bool:
    """Whether a store gives back what it was given; the fake one of older versions of torch can do neither."""
    try:
        store.set(name, "here")
        return bool(store.get(name) == b"here")
    except dist.DistError:  # of one that can, but does not answer
        raise
    except RuntimeError:
        return False


def _meet(where: Environment, limit_s: float) -> Store:
    hosts = where.rank == 0 and not where.agent_store
    try:
        _find(where, min(limit_s, _PRESENT_S) if where.agent_store else limit_s, answers=not hosts)
        return TCPStore(
            "localhost" if hosts else where.host,
            where.port,
            is_master=hosts,
            timeout=timedelta(seconds=limit_s),
            wait_for_workers=False,  # `Control.meet` names those who do not come
            multi_tenant=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        told = error if isinstance(error, PipelineError) else _unreachable(where, _reason(error), hosts)
        # Without a store nobody can agree on who tells. Where the processes of a host fail alike, the first does.
        alike = where.agent_store or isinstance(told, ConfigError)
        told.rank = where.first_here if alike else where.rank
        raise told from error


_meet_once = functools.cache(_meet)


def _find(where: Environment, limit_s: float, answers: bool) -> None:
    """Wait until the host is known and, if it `answers`, until somebody listens there; raises OSError after that."""
    start = time.monotonic()
    while True:
        passed_s = time.monotonic() - start
        try:
            if answers:
                rest_s = max(_POLL_S, limit_s - passed_s)
                socket.create_connection((where.host, where.port), timeout=rest_s).close()
            else:
                socket.getaddrinfo(where.host, where.port)
            return
        except socket.gaierror as error:
            if passed_s > _PRESENT_S:
                raise ConfigError(
                    f"MASTER_ADDR is {where.host}, a host that is not known here ({error.strerror}); give the name or "
                    "address of process 0's host, or start all processes with torchrun"
                ) from error
        except OSError:
            if passed_s > limit_s:
                raise
        time.sleep(_POLL_S)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _unreachable(where: Environment, reason: str, hosts: bool) -> StageFailure:
    remedy = "give an address and a free port of this host" if hosts else "start process 0 there"
    return StageFailure(
        f"{describe(where.rank)} cannot meet the others at MASTER_ADDR={where.host} MASTER_PORT={where.port} "
        f"({reason}); {remedy}, or start all processes with torchrun"
    )
