"""The processes that measurements run in: calls reach all of them, failures are told, none is left behind."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from benchmarks.harness.crew import Crew, CrewError, Member, cores, shares_of_cores
from pipeline.errors import DataError, PipelineError


def summed(member: Member, value: float) -> tuple[int, int, float, list[int]]:
    total = torch.tensor([value + member.rank])
    dist.all_reduce(total)
    return member.rank, torch.get_num_threads(), float(total), sorted(os.sched_getaffinity(0))


def fail_in_rank_1(member: Member) -> None:
    if member.rank == 1:
        raise ValueError("on purpose")
    time.sleep(3600)  # far beyond the limit of a test


def mistaken(member: Member) -> None:
    raise DataError(f"nothing in {member.rank}; look elsewhere")


def die(member: Member) -> None:
    os._exit(7)


def test_cores_are_shared_out_evenly() -> None:
    assert shares_of_cores([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]
    assert shares_of_cores([4, 6], 2) == [[4], [6]]
    assert shares_of_cores([0, 1], 4) == [[0, 1]] * 4


@pytest.mark.bench
def test_every_process_answers_every_call() -> None:
    with Crew(2) as crew:
        for value in (1.0, 2.0):
            answers = crew.call(summed, value)
            assert [rank for rank, *_ in answers] == [0, 1]
            assert all(total == 2 * value + 1 for _, _, total, _ in answers)
    if len(cores()) >= 2:
        assert not set(answers[0][3]) & set(answers[1][3]), "each process has cores of its own"
    assert all(threads == max(1, len(cores()) // 2) for _, threads, _, _ in answers)


@pytest.mark.bench
def test_a_failing_process_is_told_with_its_traceback_and_ends_the_others() -> None:
    with (
        pytest.raises(CrewError, match=r"fail_in_rank_1: process 1 failed\n(.|\n)*ValueError: on purpose"),
        Crew(2) as crew,
    ):
        crew.call(fail_in_rank_1)


@pytest.mark.bench
def test_a_mistake_of_the_users_is_told_as_it_is() -> None:
    with pytest.raises(PipelineError) as caught, Crew(1) as crew:
        crew.call(mistaken)
    assert type(caught.value) is DataError and str(caught.value) == "nothing in 0; look elsewhere"


@pytest.mark.bench
@pytest.mark.usefixtures("forked_crews")
def test_a_crew_can_be_aborted_before_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, while an interpreter still imports torch."""
    crew = Crew(1)
    crew.abort()
    with pytest.raises(CrewError, match="start: process 0 died with status -9"), crew:
        pytest.fail("it started")


@pytest.mark.bench
def test_a_process_that_died_between_two_calls_is_told() -> None:
    with Crew(1) as crew:
        (process,) = crew._processes
        process.kill()
        process.join()
        with pytest.raises(CrewError, match="die: process 0 died with status -9"):
            crew.call(die)


@pytest.mark.bench
def test_a_dead_process_is_told_with_its_status() -> None:
    with pytest.raises(CrewError, match="die: process 0 died with status 7"), Crew(1) as crew:
        crew.call(die)
