"""What every test gets: a name, a seed, one thread, and a check that it leaves no process behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_MARK = "PIPELINE_TEST_SESSION"  # in the environment of every process a test starts, however deep
_LONG = 200  # characters
_GRACE_S = 5.0  # how long a process may take to end after the test


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes and long texts are numbered, not spelt out: saved bytes may differ in each worker, where names may not."""
    return argname if isinstance(val, bytes) or (isinstance(val, str) and len(val) > _LONG) else None


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with recorded traces and data that lies beside the checkout on the project's own machines."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared beside the checkout: recorded traces and real data are not at hand")
    return folder


@pytest.fixture(autouse=True)
def seed() -> None:
    import numpy as np
    import torch  # not at the top: pytest's own process, which hands the tests out, needs neither

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  torch data sets and scikit-learn draw from the old generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_leftovers_at_the_end() -> Iterator[None]:
    """Covers the processes of fixtures wider than a test."""
    os.environ[_MARK] = f"{os.getpid()}-{time.time_ns()}"
    with no_leftovers():
        yield


@pytest.fixture(autouse=True)
def no_leftovers_of_the_test(no_leftovers_at_the_end: None) -> Iterator[None]:
    with no_leftovers():
        yield


@contextmanager
def no_leftovers() -> Iterator[None]:
    """Kill the processes that were started inside and still run, and fail naming them."""
    before = processes()
    yield
    deadline_s = time.monotonic() + _GRACE_S
    while left := running(processes() - before):
        if time.monotonic() > deadline_s:
            for pid in left:
                _kill(pid)
            pytest.fail(f"{len(left)} left running, now killed: {'; '.join(left.values())}", pytrace=False)
        time.sleep(0.05)


def processes() -> set[int]:
    """Ids of all processes of this machine; empty where there is no /proc."""
    return {int(entry.name) for entry in Path("/proc").glob("[0-9]*")}


def running(candidates: set[int]) -> dict[int, str]:
    """Command lines of our children and of all that carry our mark, by process id.

    The mark finds grandchildren whose parent has died; forks of our own carry none, but are children.
    """
    mark = f"{_MARK}={os.environ.get(_MARK)}".encode()
    found = {}
    for pid in candidates - {os.getpid()}:
        entry = Path("/proc") / str(pid)
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it has ended, or is somebody else's
        child = int(parent) == os.getpid()
        # Python's own helpers of multiprocessing live as long as the session. A fork of the server is no helper.
        helper = "multiprocessing.resource_tracker" in command or (child and "multiprocessing.forkserver" in command)
        if (child or mark in environment) and not helper and state not in "ZX":
            found[pid] = f"{pid} {command[:200]}"
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended meanwhile
