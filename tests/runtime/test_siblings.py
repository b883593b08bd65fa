"""Which of the processes that torchrun has started has died, or stands: as /proc shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config.environment import Environment
from pipeline.runtime.siblings import death, missing, stopped

OURS = os.getppid()


def entry(root: Path, pid: int, rank: int | None, state: str = "S", parent: int = OURS) -> None:
    folder = root / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (a ) name) {state} {parent} 1 1")
    variables = b"" if rank is None else b"LOCAL_RANK=9\0RANK=%d\0X=1\0" % rank
    (folder / "environ").write_bytes(b"A=1\0" + variables)


def where(rank: int, local_rank: int | None = None, size: int = 3) -> Environment:
    local = rank if local_rank is None else local_rank
    return Environment(rank=rank, world_size=6, local_rank=local, local_world_size=size)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Of processes 0, 1 and 2; torchrun has other children, and others have processes too."""
    for rank in range(3):
        entry(tmp_path, 100 + rank, rank)
    entry(tmp_path, 200, None)
    entry(tmp_path, 300, 1, parent=1)
    (tmp_path / "400").mkdir()
    return tmp_path


def died(place: Environment, root: Path) -> tuple[int, int] | None:
    return death(place, missing(place, root))


def bury(root: Path, rank: int) -> None:
    for file in (root / str(100 + rank)).iterdir():
        file.unlink()


def test_all_are_there(three: Path) -> None:
    assert missing(where(1), three) == set() and died(where(1), three) is None and stopped(where(1), three) == set()


@pytest.mark.parametrize(("victim", "teller"), [(0, 1), (1, 0), (2, 0)])
def test_the_first_that_is_left_tells_who_died(three: Path, victim: int, teller: int) -> None:
    bury(three, victim)
    assert all(died(where(rank), three) == (victim, teller) for rank in {0, 1, 2} - {victim})


def test_ranks_of_a_second_host_are_counted_from_its_first(tmp_path: Path) -> None:
    for rank in (3, 5):
        entry(tmp_path, 100 + rank, rank)
    assert died(where(5, 2), tmp_path) == (4, 3)


def test_who_was_told_to_end_has_not_died(three: Path) -> None:
    bury(three, 0)
    bury(three, 1)
    assert died(where(2), three) is None


def test_nobody_knows_who_has_ended_and_was_not_buried(three: Path) -> None:
    (three / "101" / "stat").write_text(f"101 (name) Z {OURS} 1 1")
    assert missing(where(0), three) is None and died(where(0), three) is None


def test_processes_of_another_launcher_say_nothing(three: Path) -> None:
    assert died(Environment(rank=0, world_size=3), three) is None
    assert stopped(Environment(rank=0, world_size=3), three) == set()


@pytest.mark.parametrize("state", ["T", "t"])
def test_who_is_stopped_is_known(three: Path, state: str) -> None:
    (three / "102" / "stat").write_text(f"102 (name) {state} {OURS} 1 1")
    assert stopped(where(0), three) == {2}
