"""Processes that measurements run in: started together, given calls in turn, ended with the crew.

A crew's processes meet as torchrun's would, each on cores of its own; while another crew works they sleep. One call
runs one function in all of them:

    with Crew(2) as crew:
        seconds = crew.call(measure, config)        # [measure(member, config) of every rank]
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from pipeline.errors import PipelineError

__all__ = ["Crew", "CrewError", "Member", "cores", "shares_of_cores"]

P = ParamSpec("P")
T = TypeVar("T")

_CONTEXT: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")  # a fresh interpreter for each
_LIMIT_S = 900.0
_START_LIMIT_S = 120.0
_END_LIMIT_S = 5.0


class CrewError(RuntimeError):
    """A process of a crew failed, died or did not answer; the message holds its traceback."""


@dataclass(frozen=True)
class Member:
    """One process of a crew."""

    rank: int
    size: int
    threads: int


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def shares_of_cores(available: Sequence[int], size: int) -> list[list[int]]:
    """Cores of each of `size` processes: equal shares, or all of them where there are too few.

    [0, 1, 2, 3, 4] for 2 -> [0, 1], [2, 3]; [0, 1] for 4 -> [0, 1] four times.
    """
    each = len(available) // size
    if each == 0:
        return [list(available)] * size
    return [list(available[rank * each : (rank + 1) * each]) for rank in range(size)]


class Crew:
    """`size` processes with gloo between them. Leaving the context ends every one of them.

    Args:
        size: number of processes.
        available: cores to share out; all of this process's by default.
        environment: further variables of the processes.
        limit_s: seconds that a call may take.
    """

    def __init__(
        self,
        size: int,
        *,
        available: Sequence[int] | None = None,
        environment: dict[str, str] | None = None,
        limit_s: float = _LIMIT_S,
    ) -> None:
        self.size, self._limit_s = size, limit_s
        available = cores() if available is None else available
        self._shares = shares_of_cores(available, size)
        self._threads = max(1, len(available) // size)
        self._environment = environment or {}
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []
        self._aborted = False

    def __enter__(self) -> Self:
        from torch._C._distributed_c10d import TCPStore

        # Kept by this process, as torchrun's agent keeps it.
        self._store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        try:
            for rank in range(self.size):
                mine, theirs = _CONTEXT.Pipe()
                environment = self._variables(rank)
                process = _CONTEXT.Process(
                    target=_serve,
                    args=(theirs, environment, self._shares[rank], self._threads),
                    name=f"member {rank}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(mine)
            if self._aborted:  # while they were started
                self.abort()
            self._gather(_START_LIMIT_S, "start")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        self._end()

    def call(self, function: Callable[Concatenate[Member, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Run `function(member, ...)` in every process and return what each returned.

        The function must be importable by name and what travels picklable. Raises a PipelineError of any process as it
        is, and CrewError if one fails in another way or does not answer in time; the crew is of no further use then.
        """
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((function, args, kwargs))
            except OSError as error:  # it has died since the last call
                raise self._died(rank, function.__name__) from error
        return self._gather(self._limit_s, function.__name__)

    def abort(self) -> None:
        """Kill every process, from any thread and at any time; whoever waits for one fails."""
        self._aborted = True
        for process in self._processes:
            process.kill()

    def _variables(self, rank: int) -> dict[str, str]:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        return {
            **{name: str(value) for name, value in places.items()},
            **meeting,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **self._environment,
        }

    def _gather(self, limit_s: float, what: str) -> list[Any]:
        """One answer from every process; the first failure ends the wait."""
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + limit_s
        while len(answers) < self.size:
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise CrewError(f"{what}: no answer from processes {sorted(waiting.values())} in {limit_s:g} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                answers[waiting[pipe]] = self._answer(pipe, waiting[pipe], what)
        return [answers[rank] for rank in range(self.size)]

    def _answer(self, pipe: Connection, rank: int, what: str) -> Any:
        try:
            failed, value = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died(rank, what) from error
        if failed and isinstance(value, PipelineError):
            raise value  # a whole message, where a traceback would say no more
        if failed:
            raise CrewError(f"{what}: process {rank} failed\n{value}")
        return value

    def _died(self, rank: int, what: str) -> CrewError:
        self._processes[rank].join(_END_LIMIT_S)
        return CrewError(f"{what}: process {rank} died with status {self._processes[rank].exitcode}")

    def _end(self) -> None:
        deadline = time.monotonic() + _END_LIMIT_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()


def _serve(pipe: Connection, environment: dict[str, str], mine: Sequence[int], threads: int) -> None:
    """What a process of a crew does: answer calls until it is told to end."""
    os.environ.update(environment)
    os.sched_setaffinity(0, mine)
    # After the cores are set: the thread pools of the mathematics libraries look at them when they load.
    import torch
    import torch.distributed as dist

    from pipeline.runtime.allocator import keep_freed_memory

    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    member = Member(rank, size, threads)
    torch.set_num_threads(threads)
    keep_freed_memory()  # the baselines too: the comparison is of methods, not of allocators
    if size > 1:
        own_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= size
        backend = "cpu:gloo,cuda:nccl" if own_gpus and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=_LIMIT_S))
    pipe.send((False, None))
    while (call := pipe.recv()) is not None:
        function, args, kwargs = call
        try:
            pipe.send((False, function(member, *args, **kwargs)))
        except PipelineError as error:
            pipe.send((True, error))
            break
        except BaseException:
            pipe.send((True, traceback.format_exc()))
            break
    # Without torch's shutdown, which may wait for a process that has failed.
    os._exit(0)
