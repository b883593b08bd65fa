"""Start Python in one or several processes, as torchrun would, and end every one of them.

Importing torch takes a process seconds. So one server imports what runs need, and each process is a fork of it that
becomes `python ARGUMENTS`: variables, folder, output and exit status are its own, while modules are there at once.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from torch._C._distributed_c10d import TCPStore

__all__ = ["ROOT", "Finished", "Team", "call", "children", "fresh", "spawn", "spawn_with", "started", "warm"]

ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 240.0
_IMPORTED = (
    *("pipeline.training", "torch._dynamo", "torch.distributed.pipelining", "torchvision.datasets"),
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "pytest", "tests.runs"),
)


@dataclass(frozen=True)
class Finished:
    """How one process ended."""

    status: int
    stdout: str
    stderr: str


def fresh(*arguments: str | Path, cwd: Path, timeout_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in an interpreter of its own, for what depends on how one starts."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def call(*arguments: str | Path, cwd: Path, timeout_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` once, without torchrun's variables."""
    command = [str(one) for one in arguments]
    with _forks([{}], command, cwd) as team:
        (done,) = team.finish(timeout_s)
    return subprocess.CompletedProcess(command, done.status, done.stdout, done.stderr)


def spawn(arguments: Sequence[str], world_size: int, timeout_s: float, cwd: Path = ROOT) -> list[Finished]:
    """Run `python ARGUMENTS` once per rank, as torchrun does: when one fails, the others get SIGTERM.

    Every process is killed when the time is up; its status is then -9.
    """
    with started(arguments, world_size, cwd) as team:
        return team.finish(timeout_s)


def spawn_with(variables: Sequence[Mapping[str, str]], *arguments: str, timeout_s: float, cwd: Path) -> list[Finished]:
    """Likewise, a process for each set of variables, which are all that it has of a launcher."""
    with _forks(variables, list(arguments), cwd) as team:
        return team.finish(timeout_s)


def torchrun(processes: int, port: int | None = None) -> list[str]:
    """Arguments that make python torchrun, whose default rendezvous needs a port that nobody else has."""
    return ["-m", "torch.distributed.run", f"--master_port={port or free_port()}", f"--nproc_per_node={processes}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(parent: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


@contextmanager
def started(arguments: Sequence[str], world_size: int, cwd: Path = ROOT) -> Iterator[Team]:
    """Likewise, for those who look at the processes while they run."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    places = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        for rank in range(world_size)
    ]
    variables = [
        {name: str(value) for name, value in place.items()} | (meeting if world_size > 1 else {}) for place in places
    ]
    with _forks(variables, list(arguments), cwd) as team:
        yield team


class Team:
    """Processes that run together, by rank, and the folder with what they print."""

    def __init__(self, folder: Path) -> None:
        self.processes: list[ForkServerProcess] = []
        self._folder = folder

    def errors(self) -> list[str]:
        """Lines that all of them have printed to stderr so far."""
        return [line for path in sorted(self._folder.glob("*.err")) for line in path.read_text().splitlines()]

    def finish(self, timeout_s: float) -> list[Finished]:
        """Wait for the end of all; those that are left when one has failed get SIGTERM, as from torchrun."""
        deadline, told = time.monotonic() + timeout_s, False
        while any(process.exitcode is None for process in self.processes):
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
            if not told and any(process.exitcode not in (None, 0) for process in self.processes):
                told = True
                for process in self.processes:
                    process.terminate()
            time.sleep(0.02)
        return [self._ended(rank) for rank in range(len(self.processes))]

    def _ended(self, rank: int) -> Finished:
        printed = [(self._folder / f"{rank}.{name}").read_text() for name in ("out", "err")]
        return Finished(self.processes[rank].exitcode or 0, *printed)


@functools.cache
def warm() -> ForkServerContext:
    """The server, started where it does not run yet. It ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()
    return context


@contextmanager
def _forks(variables: Sequence[Mapping[str, str]], arguments: Sequence[str], cwd: Path) -> Iterator[Team]:
    """One process for each set of variables; none of them is left afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        team = Team(folder)
        for rank, own in enumerate(variables):
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **own}
            process = warm().Process(target=_become, args=(arguments, cwd, environment, folder / str(rank)))
            process.start()
            stack.callback(_end, process)
            team.processes.append(process)
        yield team


def _become(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], output: Path) -> None:
    """What a fork does: what the interpreter would do with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(output.with_name(f"{output.name}.{name}"), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
        os.close(file)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        sys.path.insert(0, str(cwd))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def _end(process: ForkServerProcess) -> None:
    process.kill()
    process.join()
    process.close()
