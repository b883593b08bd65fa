"""The processes of this host, as the kernel tells of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.transport.mates import Mates, own_place

kernel, mine = own_place()
pytestmark = pytest.mark.skipif(not kernel or not hasattr(os, "pidfd_open"), reason="needs Linux 5.3")


def test_who_has_ended_is_known_and_stays_so() -> None:
    mates = Mates()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            mates.add(0, (kernel, mine))
            mates.add(3, (kernel, child.pid))
            assert mates.gone() == {} and mates.left() == [3]
        finally:
            child.kill()
    for _ in range(2):
        assert mates.gone() == {3: child.pid} and mates.left() == []
    mates.add(4, (kernel, child.pid))
    assert mates.gone() == {3: child.pid, 4: child.pid}, "it had ended before"
    mates.close()


@pytest.mark.parametrize("place", [["another kernel", 1], ["", 1], [kernel, "x"], [kernel, 2**70], True, None, []])
def test_who_cannot_be_seen_from_here_is_not_looked_after(place: object) -> None:
    mates = Mates()
    mates.add(1, place)
    assert mates.gone() == {} and mates.left() == []
    mates.close()


def test_closing_leaves_nothing_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    mates = Mates()
    for rank in range(5):
        mates.add(rank, (kernel, os.getppid()))
    assert mates.left() == list(range(5))
    mates.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
